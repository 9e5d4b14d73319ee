"""A chip made of paper: device, operations, layers and attention."""
