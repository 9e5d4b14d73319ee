"""Tool calls written as tags."""
