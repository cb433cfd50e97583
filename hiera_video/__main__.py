"""The program: `hiera-video`, and `python -m hiera_video`, which torchrun starts."""

import os
import sys


def main() -> int:
    """Runs the command line. Its imports take a moment, in which Ctrl-C shows no trace either."""
    try:
        from hiera_video.cli.main import main as run
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return run()


if __name__ == "__main__":
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import record

        sys.exit(record(main)())  # so that torchrun shows the error of the first to fail
    sys.exit(main())
