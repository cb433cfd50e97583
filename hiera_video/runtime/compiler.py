"""What torch.compile needs, and where it keeps what it has compiled."""

import importlib.util
import os
import shutil
import sys

import torch

from hiera_video.errors import ConfigError


def needed_for_compilation(has_gpu: bool) -> dict[str, bool]:
    """What torch.compile needs, in words, and whether it is there."""
    standard = "clang++" if sys.platform == "darwin" else "cl" if os.name == "nt" else "g++"
    cxx = os.environ.get("CXX", standard)
    needed = {f"a C++ compiler ({cxx})": shutil.which(cxx) is not None}
    if has_gpu:
        needed["triton"] = importlib.util.find_spec("triton") is not None
    return needed


def check_compiler(device: torch.device, key: str) -> None:
    """Raises ConfigError, which names the setting `key`, where torch.compile cannot work."""
    needed = needed_for_compilation(device.type == "cuda")
    if missing := [what for what, is_there in needed.items() if not is_there]:
        raise ConfigError(
            f"{key} is true: torch.compile needs {' and '.join(missing)}, which cannot be found; "
            f"install it, or write {key}=false"
        )


def cache_folder() -> str:
    """Where torch.compile keeps its results; TORCHINDUCTOR_CACHE_DIR moves it."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # with its compiler: 1.5 s

    return cache_dir()
