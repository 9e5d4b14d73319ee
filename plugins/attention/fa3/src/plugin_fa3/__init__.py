"""FlashAttention-3 for core, through whichever build of it is installed."""
