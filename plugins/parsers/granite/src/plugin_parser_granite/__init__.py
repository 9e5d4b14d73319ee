"""Tool calls and reasoning of IBM Granite models, for core."""
