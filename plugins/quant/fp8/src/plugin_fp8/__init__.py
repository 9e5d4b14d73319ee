"""8-bit floating point weights for core: checkpoints, or while loading."""
