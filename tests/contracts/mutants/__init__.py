"""Broken implementations, each with the tests of its suite that must notice.

What lives here: a module for each suite, with test classes over broken plugins. pytest collects them only when it is
given the file, which `tests.contracts.conftest` does, in a process of its own. `caught_by` names tests of the suite;
only those are run (`selection`), and each must fail in at least one variant.
"""
