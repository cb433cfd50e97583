"""A short video that comes with the package, and what its frames show.

A file, and not one encoded when it is needed: builds of FFmpeg may lack an encoder and decode well.
`tests/diagnosis/test_clip.py` writes it again and compares what both show.
"""

from pathlib import Path

import numpy as np

CLIP = Path(__file__).with_name("clip.mp4")
NUM_FRAMES, HEIGHT, WIDTH = 24, 64, 96
BLOCK = 16  # pixels of a side: a macroblock of H.264, so that blocks have no edges inside
TOLERANCE = 6  # of 255; the error of colours and compression is 4, and colours differ by 25 or more


def picture(number: int) -> np.ndarray:
    """Frame `number`: uint8 [HEIGHT, WIDTH, 3], blocks of one colour. All frames differ.

    The rows of blocks differ in brightness alone, because chroma is averaged across their edges.
    """
    rows, columns = np.mgrid[: HEIGHT // BLOCK, : WIDTH // BLOCK]
    shades = [25 * ((2 * columns + number + c) % (4 + c)) + 30 + 15 * rows for c in range(3)]
    blocks = np.stack(shades, axis=-1).astype(np.uint8)
    return blocks.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)
