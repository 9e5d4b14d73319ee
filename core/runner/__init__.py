"""Step plan to tensors to model to sampled tokens; weights.

What lives here: the mirror of the request table (`state`, `sampling_table`), a plan turned into a batch
(`inputs`, `transfer`), the sampler (`sampler` and its parts `penalties`, `filters`, `noise`, `logprobs`), the
runner that ties them to a model (`runner`), and who calls it from where (`executor`, `async_executor`).
What does not: any decision about which request runs, and any model.
"""
