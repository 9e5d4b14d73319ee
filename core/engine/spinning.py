"""How long compute threads spin while they wait for each other.

They do so many times a step. The OpenMP runtime lets a waiting thread spin for some 10 ms by default: with one other
busy process on the machine, spinning threads hold the cores that those they wait for need, and a step takes 20 to 100
times longer (measured: 3 tokens/s instead of 300). Sleeping at once costs half of the speed of an undisturbed machine.
"""

from __future__ import annotations

from collections.abc import MutableMapping

# About 0.2 ms: outlasts the gaps within a step, and no more. Read by the runtime when it is loaded, with torch.
_SPIN_TURNS = "4000"


def spin_briefly(environment: MutableMapping[str, str]) -> None:
    """Set the runtime's variable, unless the operator chose; without effect in a process that has loaded torch."""
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", _SPIN_TURNS)
