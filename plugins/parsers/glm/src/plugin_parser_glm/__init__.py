"""Tool calls and reasoning as GLM-4.5 and later models write them."""
