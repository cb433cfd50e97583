"""Puts the time stamps of joined recordings, and of clocks that were set back, on one rising clock.

Each fall of the decoding time begins a stretch, which is placed after the one before it, as players
do. Presentation times fall in any video whose frames are reordered.
"""

import itertools
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Bits of a time stamp, by libavformat's names of formats. libavformat adds 2**bits to stamps that
# lie more than a minute before the first one: right after a wrap, wrong in a joined recording.
BITS = {"mpegts": 33, "mpeg": 33, "flv": 32, "asf": 32}
# Formats that store presentation times only. libavformat guesses when their frames are decoded,
# wrongly as long as it does not know how far frames are reordered.
WITHOUT_DTS = frozenset({"matroska,webm", "ogg"})
MAX_GUESSED = 4  # frames by which libavformat's guesses of times are wrong, measured
MAX_REORDERED = 16  # frames that are decoded before a frame and shown after it

Stamps = Sequence[int | None]


class Fall(NamedTuple):
    number: int  # of the first packet, or frame, after it
    ticks: int  # how far the clock falls, in units of the time base


def rises(dts: Stamps, least: int = 0) -> bool:
    """Whether decoding times ascend in steps of `least` or more, and of less than a wrap's."""
    times = np.array([time for time in dts if time is not None])
    steps = times[1:] - times[:-1]
    longest = 2 ** (min(BITS.values()) - 1)
    return bool(steps.min(initial=least) >= least and steps.max(initial=0) < longest)


def jumps_within_groups(dts: Stamps, is_key: Sequence[bool]) -> bool:
    """Whether a clock jumps forward where no key frame begins, further than frames are reordered:
    frames that are decoded after the jump may be shown before one that is decoded earlier."""
    known = [n for n, time in enumerate(dts) if time is not None]
    steps = np.diff([dts[n] for n in known])
    after = np.array([is_key[n] for n in known[1:]], bool)
    rising = steps[steps > 0]  # two fields of a frame may have one time
    return bool(len(rising) and (steps[~after] > MAX_REORDERED * np.median(rising)).any())


def unwrapped(container: str, pts: Stamps, dts: Stamps) -> tuple[Stamps, Stamps]:
    """The time stamps of packets, without steps of more than half of their range."""
    full = 2 ** BITS.get(container, 64)
    known = [time for time in dts if time is not None]
    if np.all(np.abs(np.diff(known)) < full // 2):
        return pts, dts
    near_pts, near_dts, last = list[int | None](), list[int | None](), None

    def near(time: int | None) -> int | None:
        if time is None or last is None:
            return time
        return last + (time - last + full // 2) % full - full // 2

    for shown, decoded in zip(pts, dts, strict=True):
        near_dts.append(near(decoded))
        last = last if decoded is None else near_dts[-1]
        near_pts.append(near(shown))
    return near_pts, near_dts


def find_falls(
    times: Stamps,
    is_stated: Sequence[bool],
    *,
    shown: Stamps | None = None,
    is_key: Sequence[bool] | None = None,
    is_guessed: bool = False,
    least: int = 0,
) -> list[Fall]:
    """Where a clock falls back.

    Args:
        times: in the order in which they should ascend: of decoding or of presentation.
        is_stated: whether a time is one in the file, and not interpolated.
        shown: presentation times, None where there is none. Decoding times may also fall where an
            edit list continues in the middle of a group of pictures, whose beginning is not shown.
        is_guessed: times are libavformat's guesses of decoding times. Wrong ones fall often, and
            not at key frames, and by less than frames are reordered.
        is_key: is needed for guesses.
        least: the shortest step that is no fall.
    """
    known = [n for n, time in enumerate(times) if time is not None and is_stated[n]]
    stated = np.array([times[n] for n in known])
    ordered = times if shown is None else shown
    high = np.array([-np.inf if time is None else time for time in ordered])
    low = np.array([np.inf if time is None else time for time in ordered])
    highest_before = np.maximum.accumulate(high)
    lowest_after = np.minimum.accumulate(low[::-1])[::-1]
    places = np.flatnonzero(np.diff(stated) < least) + 1
    is_frequent = len(places) > max(MAX_REORDERED, len(stated) // 100)
    falls, begin = list[Fall](), 0
    for rank in places.tolist():
        if highest_before[known[rank] - 1] < lowest_after[known[rank]]:
            continue
        recent = stated[max(begin, rank - 4 * MAX_REORDERED) : rank]
        is_large = np.sum(recent > stated[rank]) > MAX_REORDERED
        if is_guessed and is_frequent and not is_large and not (is_key and is_key[known[rank]]):
            continue
        falls.append(Fall(known[rank], int(stated[rank - 1] - stated[rank])))
        begin = rank
    return falls


def placed(
    falls: Sequence[Fall], pts: Stamps, dts: Stamps, duration: Sequence[int]
) -> tuple[Stamps, Stamps]:
    """Time stamps of which each stretch is moved to the end of the one before it.

    Args:
        duration: of the packets or frames, 0 if unknown.
    """
    if not falls:
        return pts, dts
    known = [time for time in dts if time is not None]
    steps = [b - a for a, b in itertools.pairwise(known) if b > a]
    usual = int(statistics.median(steps)) if steps else 1
    moved_pts, moved_dts, end = list[int | None](), list[int | None](), None
    for begin, stop in itertools.pairwise([0, *(fall.number for fall in falls), len(pts)]):
        timed = [(dts[n] if pts[n] is None else pts[n], n) for n in range(begin, stop)]
        shown = [(time, time + (duration[n] or usual)) for time, n in timed if time is not None]
        offset = 0 if end is None else end - min(shown)[0]
        for times, moved in ((pts, moved_pts), (dts, moved_dts)):
            moved += [None if time is None else time + offset for time in times[begin:stop]]
        end = offset + max((last for _, last in shown), default=-offset)
    return moved_pts, moved_dts


def without_gaps(falls: Sequence[Fall], dts: Stamps, duration: Sequence[int]) -> list[int | None]:
    """Decoding times of which each stretch begins when the last packet before it ends.

    `placed` leaves gaps between them, because it places the times of presentation.
    """
    moved = [*dts]
    for number, _ in falls:
        before, begin = moved[number - 1], moved[number]
        if before is not None and begin is not None and duration[number - 1]:
            offset = before + duration[number - 1] - begin
            moved[number:] = [None if time is None else time + offset for time in moved[number:]]
    return moved


def fits_b_frames(pts: Stamps, dts: Stamps, is_second: np.ndarray) -> bool:
    """Whether presentation times agree with the order of MPEG-1 and MPEG-2: a B-frame, which is
    shown when it is decoded, comes before the reference frame that is decoded before it.

    libavformat interpolates the times of packets that state none, wrongly where they are joined.
    """
    latest = None  # presentation time of a reference frame
    for shown, decoded, is_later_field in zip(pts, dts, is_second.tolist(), strict=True):
        if is_later_field or shown is None:
            continue
        if shown != decoded:
            latest = shown
        elif latest is not None and shown > latest:
            return False
    return True


def evened(
    stated: np.ndarray, begins: list[int], rates: Sequence[float], otherwise: np.ndarray
) -> np.ndarray:
    """Times at a constant rate in each stretch, if they agree with all that are stated.

    Args:
        stated: in the order of frames or of decoding, seconds; NaN where no time is known.
        begins: the first frames of stretches but the first.
        rates: in frames per second, of which the nearest one is taken.
        otherwise: is returned if they do not agree.
    """
    parts, end = list[np.ndarray](), None
    for begin, stop in itertools.pairwise([0, *begins, len(stated)]):
        times, numbers = stated[begin:stop], np.arange(stop - begin)
        known = np.flatnonzero(~np.isnan(times))
        if len(known) == 0:
            return otherwise
        lines = [times[known[0]] + (numbers - known[0]) / rate for rate in rates]
        errors = [float(np.abs(line - times)[known].max()) for line in lines]
        error, rate, line = min(zip(errors, rates, lines, strict=True), key=lambda each: each[0])
        if error * rate > MAX_GUESSED:
            return otherwise
        parts.append(line if end is None else line - line[0] + end)
        end = parts[-1][-1] + 1 / rate
    return np.concatenate(parts)
