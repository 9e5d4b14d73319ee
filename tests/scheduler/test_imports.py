import subprocess
import sys


def test_scheduling_needs_no_torch() -> None:
    code = (
        "import sys, core.scheduler.scheduler, core.memory.radix, core.memory.no_cache; "
        "sys.exit('torch' in sys.modules or any(name.startswith('core.engine') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
