"""Named functions with a plain-PyTorch reference each."""
