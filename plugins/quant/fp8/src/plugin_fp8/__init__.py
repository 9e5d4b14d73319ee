"""8-bit floating point weights (e4m3): checkpoints in three layouts, or quantized while loading.

`config` reads quantization_config, `scales` the layouts' arithmetic, `linear` and `experts` hold weights, `products`
multiplies, `kernels` are Triton's part of that.
"""
