"""`core serve`."""

from __future__ import annotations

from core.cli.options import ResolvedSettings, settings_command


def _serve(resolved: ResolvedSettings) -> int | None:
    from core.server.main import serve

    return serve(resolved)


command = settings_command(
    "serve",
    _serve,
    help="Serve a model over HTTP: the OpenAI routes, the native ones and a chat page.\n\n"
    "Without --model the bundled default checkpoint is served.",
)
