"""Operations of `core.ops` as Triton kernels.

What lives here: one module a subject, with its kernels and the functions that launch them; `table` puts them together.
What does not: attention and experts, which have packages of their own.
"""
