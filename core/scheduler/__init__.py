"""Which request gets how many tokens in the next step. Numpy, no torch.

What lives here: waiting requests and their order (`queue`, `policy`, `sharing`), running ones (`table`), the step
(`scheduler`, with its parts `checks`, `chunks`, `admission`, `preemption` and `completion`), and what it gives (`plan`,
`events`). What does not: page ownership (`memory`) and anything on a device (`runner`).
"""
