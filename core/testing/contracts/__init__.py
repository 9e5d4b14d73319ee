"""Contract suites: one pytest class for each kind of plugin, to subclass.

What lives here: `base.Contract` (how a suite gets at the plugin, its device and its settings) and a module for each
kind with its suite. A suite tests what the interface's docstring promises and what the plugin claims in its
capabilities, nothing else; what is skipped is listed at the end of the run. What does not: tests of core's own
plugins, which are in tests/contracts like anybody's.

    from core.testing.contracts.attention import AttentionContract

    class TestMine(AttentionContract):
        name = "mine"

Needs `pip install core[testing]`.
"""
