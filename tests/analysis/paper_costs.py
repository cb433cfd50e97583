"""What Hiera's paper prints about its models, and a formula that knows nothing of the code."""

from __future__ import annotations

# Widths and blocks of arXiv 2306.00989, table 8.
SIZES = {
    "tiny": (96, (1, 2, 7, 2)),
    "small": (96, (1, 2, 11, 2)),
    "base": (96, (2, 3, 16, 3)),
    "base_plus": (112, (2, 3, 16, 3)),
    "large": (144, (2, 6, 36, 4)),
    "huge": (256, (2, 6, 36, 4)),
}
# GMACs (there: FLOPs) and millions of parameters as printed there: tables 4 to 6 and 8. Tiny and
# small were not published for video.
PAPER = {
    ("base", 16): (102, 51),
    ("base_plus", 16): (133, 69),
    ("large", 16): (413, 213),
    ("huge", 16): (1159, 672),
    ("large", 32): (1029, 213),
    ("tiny", 1): (5, 28),
    ("small", 1): (6, 35),
    ("base", 1): (9, 52),
    ("base_plus", 1): (13, 70),
    ("large", 1): (40, 214),
    ("huge", 1): (125, 673),
}


def encoder_by_hand(size, frames, side, units=None, pools=3):
    """(macs, LayerNorm elements, width, tokens) of the blocks, and patches, of a 2-D or 3-D Hiera.

    Mask units are of 8x8 tokens; `units` says how many are seen, all by default.
    """
    width, stages = SIZES[size]
    taps, steps = (3 * 7 * 7 * 3, frames // 2) if frames > 1 else (3 * 7 * 7, 1)
    every = steps * (side // 32) ** 2
    window = 64
    tokens = (every if units is None else units) * window
    macs, norms = tokens * width * taps, 0
    for stage, blocks in enumerate(stages):
        for block in range(blocks):
            first = stage > 0 and block == 0
            seen = tokens  # keys of all tokens, queries of those that are left
            if first:
                norms += tokens * width
                macs += tokens * width * 2 * width  # the residual
                macs += tokens * width * 3 * 2 * width
                width *= 2
                if stage <= pools:
                    tokens //= 4
            else:
                norms += tokens * width
                macs += tokens * width * 3 * width
            within = (stage - first) < 2
            macs += tokens * (window if within else seen) * width * 2
            if first and stage <= pools:
                window //= 4
            macs += tokens * width * width + 2 * tokens * width * 4 * width
            norms += tokens * width
    return macs, norms, width, tokens


def parameters_by_hand(size, frames, side, classes):
    width, stages = SIZES[size]
    video = frames > 1
    total = width * (3 * 3 * 49 if video else 3 * 49) + width
    total += width * ((side // 4) ** 2 + (frames // 2 if video else 0))
    for stage, blocks in enumerate(stages):
        for block in range(blocks):
            old = width
            if stage > 0 and block == 0:
                width *= 2
                total += old * width + width
            total += 2 * old + 2 * width
            total += old * 3 * width + 3 * width + width * width + width
            total += 8 * width * width + 5 * width
    return total + 2 * width + (width + 1) * classes
