"""Small random checkpoints and running servers for the end-to-end tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.testing.checkpoint import write_tiny_checkpoint
from tests.e2e.process import ServerProcess
from tests.e2e.wheels import EXAMPLES, PLUGINS, ROOT, Environment, build, link_dependencies


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer checkpoint in float32 with a tokenizer and a context of 2048."""
    folder = tmp_path_factory.mktemp("checkpoint")
    return write_tiny_checkpoint(folder, "llama", max_position_embeddings=2048)


@pytest.fixture(scope="session")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all tests that leave it as they found it."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    flags = ("--page-size", "4", "--served-model-name", "tiny", "--cpu-threads", "1")
    with ServerProcess(checkpoint, log, *flags) as running:
        yield running


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The bundled demo model, which calls tools and thinks if asked to, with kept responses."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    with ServerProcess(None, log, "--cpu-threads", "1", "--response-store", "8") as running:
        yield running


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All distributions of this repository as wheels."""
    place = tmp_path_factory.mktemp("wheels")
    build([ROOT, *PLUGINS, *EXAMPLES], place)
    return place


@pytest.fixture(scope="session")
def make_environment(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Environment]:
    """Makes environments with the named distributions in them."""
    dependencies = link_dependencies(tmp_path_factory.mktemp("dependencies") / "site")

    def make(*names: str | Path) -> Environment:
        return Environment(tmp_path_factory.mktemp("environment") / "env", wheels, dependencies).install(*names)

    return make
