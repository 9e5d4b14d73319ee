"""Tool calls of IBM Granite models, for core."""
