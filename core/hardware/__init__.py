"""Core's own hardware backends, registered like anyone's."""
