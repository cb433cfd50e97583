"""What a command ran with, for its report."""

import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import hiera_video


def environment() -> dict[str, Any]:
    """Versions, machine and command of this process."""
    import torch  # here, because `git_commit` is needed where torch does not load, too

    has_cuda = torch.cuda.is_available()
    return {
        "hiera_video": hiera_video.__version__,
        "git_commit": git_commit(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if has_cuda else None,
        "machine": torch.cuda.get_device_name() if has_cuda else platform.machine(),
        "python": platform.python_version(),
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def git_commit() -> str | None:
    """The commit of the checkout that holds the package, or None."""
    folder = Path(hiera_video.__file__).parents[1]
    if not (folder / ".git").exists():  # an installed package may lie in another project's checkout
        return None
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
