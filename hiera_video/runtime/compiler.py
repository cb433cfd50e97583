"""What torch.compile needs, and where it keeps what it has compiled."""

import importlib.util
import os
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from hiera_video.errors import ConfigError


def needed_for_compilation(has_gpu: bool) -> dict[str, bool]:
    """What torch.compile needs, in words, and whether it is there and works."""
    standard = "clang++" if sys.platform == "darwin" else "cl" if os.name == "nt" else "g++"
    cxx = os.environ.get("CXX", standard)
    needed = {f"a C++ compiler ({cxx})": _works(cxx)}
    if has_gpu:
        needed["triton"] = importlib.util.find_spec("triton") is not None
    return needed


def _works(compiler: str) -> bool:
    if shutil.which(compiler) is None:
        return False
    if os.name == "nt":  # cl has no such option
        return True
    try:
        done = subprocess.run([compiler, "--version"], capture_output=True, check=False)
    except OSError:  # it is no program
        return False
    return done.returncode == 0


def check_compiler(device: torch.device, wish: str, instead: str) -> None:
    """Raises ConfigError where torch.compile cannot work.

    Args:
        wish: the setting that asks for it, as in "compile is true".
        instead: what to do without it, as in "write compile=false".
    """
    needed = needed_for_compilation(device.type == "cuda")
    if missing := [what for what, is_there in needed.items() if not is_there]:
        raise ConfigError(
            f"{wish}: torch.compile needs {' and '.join(missing)}, which is missing or does not "
            f"work; install it, or {instead}"
        )


def uncompiled(is_compiled: bool) -> AbstractContextManager[Any]:
    """Compiled models run as they were before, also where they would be compiled again."""
    return torch.compiler.set_stance("force_eager") if is_compiled else nullcontext()


def cache_folder() -> str:
    """Where torch.compile keeps its results; TORCHINDUCTOR_CACHE_DIR moves it."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # with its compiler: 1.5 s

    return cache_dir()
