"""Admin routes: what an operator does to a running server.

What lives here: the routes, their bodies, one module per subject. Who may use them is core.server.admin_access's;
what the engine does about them core.engine.control's. What does not: routes that only tell something (core.server.info,
core.server.health, core.server.loads).
"""

from core.server.admin.routes import ALL_PATHS, routes

__all__ = ["ALL_PATHS", "routes"]
