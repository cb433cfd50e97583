"""One section of `tools/gpu_check.sh`.

    python -m gpu_checks SECTION FOLDER --seconds N [--smoke]

"compile" is no section of the results: it compiles, in several processes, what "speed" measures.
"""

import argparse
import importlib
import signal
import sys
from pathlib import Path

SECTIONS = {  # module, function, title
    "environment": ("machine", "environment", "Machine"),
    "tests": ("machine", "tests", "Tests behind the marker gpu"),
    "compile": ("speeds", "compile_ahead", "Compiling"),
    "speed": ("speeds", "speeds", "Ours and the official package"),
    "profiles": ("kernels", "profiles", "Kernels"),
    "commands": ("files", "commands", "Commands, from H.264 files"),
    "peers": ("machine", "peers", "Other models"),
    "decoders": ("files", "decoders", "Decoders"),
    "candidates": ("kernels", "candidates", "Candidates for kernels"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()

    # Processes that decode import this module, too: not at its top, since torch takes seconds.
    import torch

    from gpu_checks.machine import set_up
    from gpu_checks.page import OutOfTime, Page

    if not args.smoke and not torch.cuda.is_available():
        print("no CUDA device: only --smoke runs without one", file=sys.stderr)
        return 1
    set_up(args.smoke)

    def stop(*_: object) -> None:
        raise OutOfTime

    module, name, title = SECTIONS[args.section]
    page = Page(args.folder / f"{args.section}.md", title)
    signal.signal(signal.SIGALRM, stop)
    # In the background of a shell it is ignored, also by the programs that a section interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.alarm(args.seconds)
    try:
        section = getattr(importlib.import_module(f"gpu_checks.{module}"), name)
        section(page, args.folder, args.smoke)
    except OutOfTime:
        page.text(f"The rest was not measured: the {args.seconds} s of this section were over.")
    signal.alarm(0)
    return int(page.failed)


if __name__ == "__main__":
    sys.exit(main())
