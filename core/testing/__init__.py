"""Mock hardware, mock model, byte tokenizer and contract suites, for core and for plugin authors.

What lives here, each in a module of its own so that a test imports only what it needs:
`mock_model.MockModel` (a model whose tokens can be computed by hand), `mock_hardware.MockHardware`,
`mock_runner.build_mock_runner` (both under a ModelRunner), `dense_attention.DenseAttention` (slow reference),
`byte_tokenizer.ByteTokenizer`, `checkpoint.write_tiny_checkpoint` (a random checkpoint with a tokenizer),
`server.memory_server` (the real HTTP application over the mock model, without process or socket), `transport` (how its
clients reach it). Nothing here is used by a running server.
"""
