"""Tool calls as Qwen3-Coder writes them."""
