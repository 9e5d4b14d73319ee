"""Kernels in Triton's interpreter: the modules in `interpreted/` are collected only where TRITON_INTERPRET=1 was set
before anything imported triton, or where there is a GPU. `test_triton_interpreted.py` runs them in child processes."""

from __future__ import annotations

import os

import torch

collect_ignore_glob: list[str] = []
if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    collect_ignore_glob.append("interpreted/*")
