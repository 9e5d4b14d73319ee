"""A provider whose operators come with loading one shared library, without importing the package around it."""

from __future__ import annotations

import torch

from plugin_fa3.providers.base import Provider, ProviderError


class LibraryProvider(Provider):
    def _load(self) -> None:
        path = self.library()
        if path is None:
            raise ProviderError(f"{self.install} is not installed (pip install {self.install})")
        try:
            torch.ops.load_library(path)
        except OSError as exc:  # built for another torch or CUDA, or cut off
            raise ProviderError(
                f"{path} of {self.install} cannot be loaded with torch {torch.__version__}: {exc}; "
                f"install a {self.install} that was built for it"
            ) from exc
