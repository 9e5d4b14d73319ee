"""Core's own attention backends, registered like anyone's."""
