"""Hiera for video (arXiv 2306.00989)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hiera_video.extraction.store import Features as Features
    from hiera_video.extraction.store import load_features as load_features
    from hiera_video.models.hiera import Hiera as Hiera
    from hiera_video.models.mae import MaskedAutoencoderHiera as MaskedAutoencoderHiera
    from hiera_video.models.registry import create_autoencoder as create_autoencoder
    from hiera_video.models.registry import create_model as create_model
    from hiera_video.models.registry import list_models as list_models
    from hiera_video.video.open import open_video as open_video

__version__ = "0.1.0"

_HOME = {
    "Features": "hiera_video.extraction.store",
    "Hiera": "hiera_video.models.hiera",
    "MaskedAutoencoderHiera": "hiera_video.models.mae",
    "create_autoencoder": "hiera_video.models.registry",
    "create_model": "hiera_video.models.registry",
    "list_models": "hiera_video.models.registry",
    "load_features": "hiera_video.extraction.store",
    "open_video": "hiera_video.video.open",
}
__all__ = [
    "Features",
    "Hiera",
    "MaskedAutoencoderHiera",
    "__version__",
    "create_autoencoder",
    "create_model",
    "list_models",
    "load_features",
    "open_video",
]


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used: torch alone takes seconds."""
    if name not in _HOME:
        raise AttributeError(f"module 'hiera_video' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
