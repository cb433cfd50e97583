"""`python -m hiera_video`, which torchrun starts."""

import os
import sys

from hiera_video.cli.main import main

if __name__ == "__main__":
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import record

        sys.exit(record(main)())  # so that torchrun shows the error of the first to fail
    sys.exit(main())
