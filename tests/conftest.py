"""Before anything loads torch: threads that wait do not hold the cores that others need. Property tests have no
deadline: how long an example takes says nothing on a busy machine (CI's own profile is the same, and repeatable)."""

from __future__ import annotations

import os

from hypothesis import settings

from core.engine.spinning import spin_briefly

spin_briefly(os.environ)
if "CI" not in os.environ:
    settings.register_profile("here", deadline=None)
    settings.load_profile("here")
