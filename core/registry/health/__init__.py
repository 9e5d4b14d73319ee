"""What is wrong with installed plugins (`doctor`), or with a package before its release (`validate`).

What lives here: findings, imports in child processes (`children`, and `checkup`, which runs in them), and rules on
metadata, manifests and sources. What does not: discovery and selection, which only record why a plugin cannot be used.
"""
