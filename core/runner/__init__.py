"""Step plan to tensors to model to sampled tokens; weights.

What lives here: the mirror of the request table (`state`, `sampling_table`), a plan turned into a batch (`inputs`,
`transfer`), steps that the device has recorded (`graphs`, `pieces`), the sampler (`sampler`, what it takes from the
host in `sampling_inputs`, and its parts `penalties`, `processors`, `noise`, `logprobs`), the runner that ties them to
a model (`runner`), what it makes before the first step (`loading`, `weights`, `kv_buffers`, `warm_up`), one step from
launch to result (`running_step`, `results`), and who calls it from where (`executor`, `async_executor`, `following`).
What does not: any decision about which request runs, and any model.
"""
