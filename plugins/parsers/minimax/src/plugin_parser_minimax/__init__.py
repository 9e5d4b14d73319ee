"""Tool calls and reasoning as MiniMax M2 writes them."""
