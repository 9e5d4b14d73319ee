"""Attention over the paged KV cache.

What lives here: the kernels (`store`, `decode`, `prefix`, `prefill`; what they have in common in `blocks`), their tile
sizes (`tiles`), how rows are dealt out (`rows`, `sharing`), and the backend that core calls (`backend`, `latent`).
What does not: other operations of a layer.
"""
