"""Hiera for video (arXiv 2306.00989)."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hiera_video.evaluation.prediction import load_model as load_model
    from hiera_video.evaluation.prediction import model_transform as model_transform
    from hiera_video.extraction.store import Features as Features
    from hiera_video.extraction.store import load_features as load_features
    from hiera_video.models.card import ModelCard as ModelCard
    from hiera_video.models.mae import MaskedAutoencoderHiera as MaskedAutoencoderHiera
    from hiera_video.models.pretrained import Hiera as Hiera
    from hiera_video.models.pretrained import create_autoencoder as create_autoencoder
    from hiera_video.models.pretrained import create_model as create_model
    from hiera_video.models.saving import save_model as save_model
    from hiera_video.models.variants import list_models as list_models
    from hiera_video.video.open import open_video as open_video

__version__ = "0.2.0"

_NAMES = {
    "evaluation.prediction": ("load_model", "model_transform"),
    "extraction.store": ("Features", "load_features"),
    "models.card": ("ModelCard",),
    "models.mae": ("MaskedAutoencoderHiera",),
    "models.pretrained": ("Hiera", "create_autoencoder", "create_model"),
    "models.saving": ("save_model",),
    "models.variants": ("list_models",),
    "video.open": ("open_video",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used: torch alone takes seconds."""
    if name not in _HOME:
        raise AttributeError(f"module 'hiera_video' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
