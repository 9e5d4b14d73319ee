"""FlashInfer's attention for core."""
