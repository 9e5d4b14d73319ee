"""`python -m tests.fuzz TARGET [SECONDS]`: atheris on one target; needs `pip install atheris`. Without a target: their
names."""

from __future__ import annotations

import sys


def main() -> None:
    """See the module."""
    if len(sys.argv) == 1:
        from tests.fuzz import targets

        print(*targets.TARGETS)
        return
    import atheris

    with atheris.instrument_imports(include=["core", "jinja2"]):
        from tests.fuzz.targets import TARGETS

    name, seconds = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "60"
    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-max_len=4096"], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
