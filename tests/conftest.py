"""Before anything loads torch: threads that wait do not hold the cores that others need."""

from __future__ import annotations

import os

from core.engine.spinning import spin_briefly

spin_briefly(os.environ)
