"""Tool calls and reasoning as MiMo writes them."""
