"""4-bit and 8-bit weights in the formats of the bitsandbytes library, computed by its kernels.

What lives here: reading `quantization_config` and the tensors bitsandbytes writes, quantizing unquantized checkpoints
as they are loaded, cutting quantized weights over tensor-parallel ranks, and choosing a kernel for each call.
What does not: kernels (bitsandbytes has them), other formats.
"""
