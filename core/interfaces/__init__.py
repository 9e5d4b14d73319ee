"""What plugins implement, and the values that cross an interface.

What lives here: abstract classes and protocols (one noun a file), the dataclasses they exchange, the
exception tree, sampling parameters, plugin kinds and API versions.
What does not: any implementation, any import of another part of `core`, any import of torch at run time.
"""
