"""What model plugins are built from."""
