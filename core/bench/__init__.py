"""Load generators and measurements behind `core bench`."""
