"""Which request gets how many tokens in the next step. Numpy, no torch.

What lives here: waiting requests and their order (`queue`, `policy`, `sharing`), running ones (`table`), and the
step (`scheduler`, `plan`, `events`). What does not: page ownership (`memory`) and anything on a device (`runner`).
"""
