"""HTTP: one file per API family over one engine client.

What lives here: request bodies, reply shapes, errors, authentication, the chat page, the server's life.
What does not: text handling (`core.frontend`), generation (`core.engine`).
"""
