"""What model plugins are built from: linear layers, norms, rotary tables, attention, MLPs, experts, the decoder.

What lives here: torch modules that take a `BuildContext`, shard themselves over its ranks, account for the checkpoint
tensors they need and bind the operations they call when they are constructed; and the reading of `config.json` fields
that every architecture shares.
What does not: kernels (`core.ops`), attention over pages (attention plugins), reading files (`core.runner.weights`),
anything that names an architecture.
"""
