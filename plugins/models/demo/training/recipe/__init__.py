"""How the bundled demo model is made: its small world, the data generator, tokenizer, training and evaluation.

What lives here: everything that decides what the model has seen, seeded. What does not: anything a server needs;
the package `plugin_demo` holds the result only.
"""
