"""Pages, leases, cache groups and prefix caches. Bookkeeping only, no torch."""
