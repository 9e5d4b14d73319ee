"""Pages, leases, cache groups and prefix caches. Bookkeeping only, no torch.

What lives here: who owns which page (`pages`, `lease`, `manager`), the prefix caches `radix` and `no_cache`, and
eviction orders. What does not: KV buffers (attention backends allocate them) and who runs when (`scheduler`).
"""
