"""8-bit floating point weights (e4m3): checkpoints in three layouts, or quantized while loading.

`config` reads quantization_config, `kv` what it says of the KV cache; `scales` has the layouts' arithmetic, `linear`
and `experts` hold weights, `products` and `fused` multiply; `kernels` is the door to Triton's part: `few`, `grouped`,
`front`.
"""
