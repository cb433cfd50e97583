"""Reads damaged videos, and compares the frames with those of the videos before the damage.

    python tools/fuzz_reader.py [--files 10000] [--seed 0] [--backend pyav] [--limit-sec 1400]
                                [--keep FOLDER]
    python tools/fuzz_reader.py --only NUMBER [--seed 0] [--keep FOLDER]

Small videos of ten codecs and containers are damaged in eleven ways. Which way, where and how is a
function of (seed, number of the file), so `--only` repeats one file and prints what was found in
it. All frames of each file are read in order and some in random order, under supervision. FFmpeg
then decodes the file once from its first to its last packet, and what it flags is noted: a packet
that it refuses, or a packet or frame that it calls corrupt. Prints two tables, by damage and by
video, and the numbers of the files in which there is something to look at. Columns:

* refused whole: `open_video` raised VideoError, by cause;
* right: a frame of the undamaged video at its time;
* refused: frames for which VideoError was raised;
* withheld: frames that FFmpeg decodes as in the undamaged video, with nothing flagged in their
  group of pictures, and that were not returned;
* wrong: frames that are none of the undamaged video. Of these, "flagged" are those at or after
  something flagged in their group of pictures, a fault. "Logged" is the same, but FFmpeg wrote an
  error to its log only. "Unlike" are others that FFmpeg's decode of the same file does not contain
  either. "Unflagged" are the rest, which cannot be known to be wrong;
* moved: frames of the undamaged video, but at a time that neither the undamaged video nor FFmpeg
  gives them, although time stamps are intact and `damage` is None. A fault;
* varied: frames that depend on the order in which they are read;
* crashes, hangs, exceptions: of the reader; an exception is any but VideoError. Faults;
* not judged: FFmpeg's decode crashed or hung.

The exit code is 1 if there are faults.
"""

import argparse
import hashlib
import itertools
import logging
import os
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np

import hiera_video
from hiera_video.analysis.tables import format_table
from hiera_video.errors import listing
from hiera_video.runtime.workers import Death, Report, Workers
from hiera_video.video.open import open_video
from hiera_video.video.reader import VideoError, VideoReader

NUM_FRAMES, FPS, HEIGHT, WIDTH = 40, 25, 64, 96
SAME_TIME_SEC = 0.25 / FPS
NUM_SINGLE_READS, NUM_CLIPS, CLIP_FRAMES = 8, 3, 4
DEADLINE_SEC = 10.0  # of the reader; the longest read of an undamaged video takes 0.1 s

FAULTS = ("wrong, flagged", "moved", "crashes", "hangs", "exceptions")
COLUMNS = (
    *("files", "opened", "right", "refused", "withheld", "wrong, unflagged", "wrong, logged"),
    *("wrong, flagged", "wrong, unlike", "moved", "varied", "crashes", "hangs", "exceptions"),
    "not judged",
)
NOTED = (
    *("wrong, flagged", "wrong, logged", "wrong, unlike", "moved", "varied", "withheld"),
    *("crashes", "hangs", "exceptions", "not judged"),
)
REFUSED_WHOLE = "refused whole: "  # a cause follows


# ------------------------------------------------------------------------------------------------
# Videos


class Video(NamedTuple):
    """How an undamaged video is written."""

    suffix: str
    encoder: str
    options: dict[str, str]
    pix_fmt: str = "yuv420p"
    container_options: dict[str, str] = {}  # noqa: RUF012
    delay: int = 0  # of FFmpeg's presentation times, which AVI does not store; in frames


VIDEOS = {
    "H.264, mp4": Video(".mp4", "libx264", {"g": "12", "bf": "0"}),
    "H.264 with B-frames, mkv": Video(".mkv", "libx264", {"g": "12", "bf": "2"}),
    "H.264 with open GOPs, ts": Video(
        ".ts", "libx264", {"g": "12", "bf": "2", "x264-params": "open-gop=1"}
    ),
    "HEVC, mp4, index first": Video(
        ".mp4",
        "libx265",
        {"x265-params": "keyint=12:log-level=none:pools=none:frame-threads=1"},
        container_options={"movflags": "+faststart"},
    ),
    "MPEG-4 part 2 with B-frames, avi": Video(".avi", "mpeg4", {"g": "12", "bf": "2"}, delay=1),
    "MPEG-2 with B-frames, mpg": Video(".mpg", "mpeg2video", {"g": "12", "bf": "2"}),
    "MJPEG, avi": Video(".avi", "mjpeg", {}, "yuvj420p"),
    "VP8, webm": Video(".webm", "libvpx", {"g": "12"}),
    "VP9, webm": Video(".webm", "libvpx-vp9", {"g": "12"}),
    "AV1, mkv": Video(".mkv", "libsvtav1", {"g": "12", "svtav1-params": "lp=1"}),
}


def pictures() -> Iterator[np.ndarray]:
    """A texture that moves to the left, and another that moves up in a window of it."""
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 255, (2, 32, 48, 3), dtype=np.uint8)
    back, front = (cv2.resize(c, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC) for c in cells)
    for number in range(NUM_FRAMES):
        picture = back[:HEIGHT, 2 * number :][:, :WIDTH].copy()
        picture[20:44, 30:66] = front[number:, :36][:24]
        yield picture


def write_videos(folder: Path) -> None:
    """Writes the undamaged videos, the same bytes each time."""
    os.environ["SVT_LOG"] = "1"  # errors only
    for name, video in VIDEOS.items():
        path = str(undamaged(folder, name))
        options = {"fflags": "+bitexact", **video.container_options}
        with av.open(path, "w", container_options=options) as container:
            stream = container.add_stream(video.encoder, rate=FPS, options=video.options)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, video.pix_fmt
            stream.codec_context.thread_count = 1
            for number, picture in enumerate(pictures()):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, FPS)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))


def undamaged(folder: Path, name: str) -> Path:
    return folder / f"undamaged_{list(VIDEOS).index(name)}{VIDEOS[name].suffix}"


# ------------------------------------------------------------------------------------------------
# Damage


def part(data: bytes, rng: np.random.Generator, low: int, high: int) -> slice:
    """A random part of `low` to `high` bytes."""
    length = min(int(rng.integers(low, high + 1)), len(data))
    begin = int(rng.integers(len(data) - length + 1))
    return slice(begin, begin + length)


def change_bytes(data: bytearray, rng: np.random.Generator, number: int) -> bytes:
    for _ in range(number):
        data[rng.integers(len(data))] ^= int(rng.integers(1, 256))
    return data


def zero_run(data: bytearray, rng: np.random.Generator) -> bytes:
    run = part(data, rng, 16, 512)
    data[run] = bytes(run.stop - run.start)
    return data


def random_run(data: bytearray, rng: np.random.Generator) -> bytes:
    run = part(data, rng, 16, 512)
    data[run] = rng.bytes(run.stop - run.start)
    return data


def cut(data: bytearray, rng: np.random.Generator) -> bytes:
    return data[: rng.integers(1, len(data))]


def delete(data: bytearray, rng: np.random.Generator) -> bytes:
    del data[part(data, rng, 1, 2048)]
    return data


def duplicate(data: bytearray, rng: np.random.Generator) -> bytes:
    run = part(data, rng, 1, 2048)
    return data[: run.stop] + data[run.start :]


def swap(data: bytearray, rng: np.random.Generator) -> bytes:
    length = int(rng.integers(1, 1025))
    first, second = sorted(int(n) for n in rng.integers(len(data) - length + 1, size=2))
    length = min(length, second - first)
    one, other = slice(first, first + length), slice(second, second + length)
    data[one], data[other] = data[other], data[one]
    return data


def lose_blocks(data: bytearray, rng: np.random.Generator) -> bytes:
    blocks = part(bytes(len(data) // 188), rng, 1, 4)
    del data[188 * blocks.start : 188 * blocks.stop]
    return data


def insert(data: bytearray, rng: np.random.Generator) -> bytes:
    place = int(rng.integers(len(data) + 1))
    return data[:place] + rng.bytes(int(rng.integers(1, 257))) + data[place:]


def change_header(data: bytearray, rng: np.random.Generator) -> bytes:
    """Changes bytes at the beginning, at the end, or of the index of an mp4 file."""
    headers = [slice(0, 256), slice(len(data) - 256, len(data))]
    if (moov := data.find(b"moov")) >= 0:
        headers.append(slice(moov, moov + int.from_bytes(data[moov - 4 : moov])))
    header = headers[rng.integers(len(headers))]
    data[header] = change_bytes(data[header], rng, int(rng.integers(1, 9)))
    return data


DAMAGES: dict[str, Callable[[bytearray, np.random.Generator], bytes]] = {
    "a byte changed": partial(change_bytes, number=1),
    "2 to 32 bytes changed": lambda data, rng: change_bytes(data, rng, int(rng.integers(2, 33))),
    "a run of zeros": zero_run,
    "a run of random bytes": random_run,
    "cut": cut,
    "a part deleted": delete,
    "a part duplicated": duplicate,
    "two parts swapped": swap,
    "blocks of 188 bytes lost": lose_blocks,
    "bytes inserted": insert,
    "headers changed": change_header,
}


def names_of(number: int) -> tuple[str, str]:
    """Video and damage of a file; every pair occurs, as 10 and 11 have no common factor."""
    return list(VIDEOS)[number % len(VIDEOS)], list(DAMAGES)[number % len(DAMAGES)]


def damaged(folder: Path, seed: int, number: int) -> bytes:
    """The content of file `number`."""
    video, damage = names_of(number)
    data = bytearray(undamaged(folder, video).read_bytes())
    return bytes(DAMAGES[damage](data, np.random.default_rng([seed, number])))


# ------------------------------------------------------------------------------------------------
# FFmpeg's plain decode


class Frame(NamedTuple):
    """A frame, as FFmpeg gives it."""

    picture: bytes  # hash of the pixels
    packet: int  # number in decoding order
    content: bytes  # of that packet
    group: int  # packet of the key frame with which the group of pictures begins
    time_sec: float | None


@dataclass
class Decode:
    """A file as FFmpeg decodes it, packet by packet from the first one, with one thread."""

    stamps: list[tuple[int | None, int | None]] = field(default_factory=list)  # pts, dts of packets
    frames: list[Frame] = field(default_factory=list)  # in the order of presentation
    flagged: dict[int, str] = field(default_factory=dict)  # packet -> how
    logged: dict[int, str] = field(default_factory=dict)  # packet -> message


def hash_of(picture: np.ndarray) -> bytes:
    return hashlib.blake2b(picture.tobytes(), digest_size=16).digest()


def decode(path: Path, delay: int) -> Decode:
    """Decodes a file as far as FFmpeg can.

    Args:
        delay: as of `Video`.
    """
    result, contents, keys, group = Decode(), list[bytes](), set[int](), 0
    try:
        container = av.open(str(path), metadata_errors="replace")
    except (av.error.FFmpegError, OSError):
        return result
    with container:
        stream = next(iter(container.streams.video), None)
        if stream is None or stream.codec_context is None:
            return result
        context = stream.codec_context
        context.thread_count, context.copy_opaque = 1, True
        for number, packet in enumerate(packets_of(container, stream)):
            if packet is not None:
                contents.append(bytes(packet))
                result.stamps.append((packet.pts, packet.dts))
                packet.opaque = number  # decoders copy it to the frame
                if packet.is_keyframe:
                    keys.add(number)
                if packet.is_corrupt:
                    result.flagged[number] = "the packet is corrupt"
            av.logging.set_level(av.logging.ERROR)
            decoded: list[av.VideoFrame] = []
            try:
                with av.logging.Capture() as messages:
                    decoded = context.decode(packet)
            except av.error.FFmpegError as error:
                result.flagged.setdefault(number, f"refused, {error.strerror}")
            finally:
                av.logging.set_level(None)
            if messages:
                result.logged[number] = messages[0][2].strip()
            for frame in decoded:
                if frame.is_corrupt:
                    result.flagged.setdefault(frame.opaque, "the frame is corrupt")
                if frame.key_frame and frame.opaque in keys:  # container and decoder say so
                    group = frame.opaque
                time_sec = None
                if frame.pts is not None:
                    time_sec = float((frame.pts - delay) * stream.time_base)
                picture = hash_of(frame.to_ndarray(format="rgb24"))
                content = contents[frame.opaque]
                result.frames.append(Frame(picture, frame.opaque, content, group, time_sec))
    return result


def packets_of(container, stream) -> Iterator[av.Packet | None]:
    """The packets that hold data, up to the end or to the first that cannot be read; then None."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, IndexError):  # IndexError: of a stream not announced before
            packet = None
        if packet is None:
            yield None
            return
        if packet.size:
            yield packet


@cache
def decode_undamaged(folder: Path, name: str) -> Decode:
    return decode(undamaged(folder, name), VIDEOS[name].delay)


# ------------------------------------------------------------------------------------------------
# The reader


@dataclass
class Reading:
    """What the reader gave."""

    times_sec: list[float]
    damage: str | None = None
    # By position, the hashes of all that was returned for it.
    pictures: dict[int, set[bytes]] = field(default_factory=lambda: defaultdict(set))
    refused: set[int] = field(default_factory=set)


def read(reader: VideoReader, rng: np.random.Generator) -> Reading:
    """Reads all frames in order, then some one by one and some as clips, in random order."""
    result = Reading(reader.frame_times_sec.tolist())
    num_frames = min(len(reader), 4 * NUM_FRAMES)  # a header may announce any number
    todo = 0
    while todo < num_frames:
        try:
            for position, frame in reader.stream(range(todo, num_frames)):
                result.pictures[position].add(hash_of(frame))
                todo = position + 1
        except VideoError:
            result.refused.add(todo)
            todo += 1
    singles = rng.integers(num_frames, size=(NUM_SINGLE_READS, 1))
    clips = rng.integers(num_frames, size=(NUM_CLIPS, CLIP_FRAMES))
    for clip in [*singles.tolist(), *clips.tolist()]:
        try:
            for position, frame in zip(clip, reader.frames(clip), strict=True):
                result.pictures[position].add(hash_of(frame))
        except VideoError:
            if len(clip) == 1:
                result.refused.add(clip[0])
    result.damage = reader.damage
    return result


# ------------------------------------------------------------------------------------------------
# Judgement


@dataclass
class Outcome:
    """What was found in one file."""

    number: int
    counts: Counter[str] = field(default_factory=Counter)  # by column
    notes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # by column

    def add(self, column: str, sentence: str) -> None:
        self.counts[column] += 1
        self.notes[column].append(sentence)


class Judge:
    """Compares what was read with FFmpeg's decode of the file, and of the undamaged video."""

    def __init__(self, plain: Decode, clean: Decode) -> None:
        self.plain = plain
        self.true_times = {frame.picture: frame.time_sec for frame in clean.frames}
        self.true_frames = {(frame.content, frame.picture) for frame in clean.frames}
        stamps = iter(clean.stamps)
        self.has_true_stamps = all(stamp in stamps for stamp in plain.stamps)  # maybe fewer

    def judge(self, outcome: Outcome, reading: Reading | None) -> None:
        """Adds to an outcome what was right and wrong with a reading; None if it was refused."""
        returned = set[bytes]()
        if reading is not None:
            outcome.counts["refused"] += len(reading.refused)
            for position, pictures in sorted(reading.pictures.items()):
                time_sec = reading.times_sec[position]
                where = f"frame {position} at {time_sec:.3f} s"
                if len(pictures) > 1 or position in reading.refused:
                    error = " and an error" * (position in reading.refused)
                    outcome.add("varied", f"{where}: {len(pictures)} pictures{error}")
                for picture in pictures:
                    column, reason = self.verdict(picture, position, time_sec, reading.damage)
                    outcome.add(column, f"{where}{reason}")
                returned |= pictures
        for frame in self.plain.frames:
            is_sound = self.is_intact(frame) and self.signs(frame) == (None, None)
            if is_sound and frame.picture not in returned:
                outcome.add("withheld", f"the frame of packet {frame.packet}")

    def verdict(
        self, picture: bytes, position: int, time_sec: float, damage: str | None
    ) -> tuple[str, str]:
        """The column of a picture that was returned, and an explanation."""
        true_time = self.true_times.get(picture)
        if true_time is not None and abs(true_time - time_sec) < SAME_TIME_SEC:
            return "right", ""
        frames = self.plain.frames
        same = nearest([frame for frame in frames if frame.picture == picture], time_sec)
        shown = nearest(frames, time_sec)
        if not self.has_true_stamps:  # then the reader may have other times than FFmpeg
            shown = frames[min(position, len(frames) - 1)] if frames else None
        if same is not None and self.is_intact(same):
            if is_at(same, time_sec) or not self.has_true_stamps:  # the file states other times
                return "right", ""
            if shown is None or not is_at(shown, time_sec) or self.is_intact(shown):
                return (
                    ("moved", f" is that of {true_time:.3f} s") if damage is None else ("right", "")
                )
            same = None  # a decoder gave the picture of another frame for a damaged one
        flagged, logged = self.signs(same or shown)
        if flagged is not None:
            return "wrong, flagged", flagged
        if logged is not None:
            return "wrong, logged", logged
        return "wrong, unlike" if same is None else "wrong, unflagged", ""

    def is_intact(self, frame: Frame) -> bool:
        """Whether packet and picture are as in the undamaged video."""
        return (frame.content, frame.picture) in self.true_frames

    def signs(self, frame: Frame | None) -> tuple[str | None, str | None]:
        """What was flagged, and logged, first at or before a frame in its group of pictures."""
        if frame is None:
            return None, None
        flagged, logged = (
            next(
                (f": packet {n}: {of[n]}" for n in range(frame.group, frame.packet + 1) if n in of),
                None,
            )
            for of in (self.plain.flagged, self.plain.logged)
        )
        return flagged, logged


def nearest(frames: Iterable[Frame], time_sec: float) -> Frame | None:
    timed = [frame for frame in frames if frame.time_sec is not None]
    return min(timed, key=lambda frame: abs(frame.time_sec - time_sec), default=None)


def is_at(frame: Frame, time_sec: float) -> bool:
    return abs(frame.time_sec - time_sec) < SAME_TIME_SEC


def examine(
    items: Sequence[int],
    deaths: Mapping[int, Death],
    report: Report,
    *,
    folder: Path,
    seed: int,
    backend: str,
) -> Outcome:
    """Reads and judges a file: the work of a supervised process.

    Args:
        items: the number of the file, twice: to be read, and to be decoded by FFmpeg.
    """
    logging.getLogger("hiera_video").setLevel(logging.ERROR)  # each file would be warned of
    outcome = Outcome(items[0])
    outcome.counts["files"] += 1
    for item, death in deaths.items():
        column = {"crashed": "crashes", "hung": "hangs"}[death.cause]
        outcome.add(column if item == 0 else "not judged", death.sentence)
        return outcome
    name, _ = names_of(outcome.number)
    path = folder / f"{outcome.number}{VIDEOS[name].suffix}"
    path.write_bytes(damaged(folder, seed, outcome.number))
    reading = None
    report.working(0)
    try:
        with open_video(path, backend, deadline_sec=DEADLINE_SEC) as reader:
            outcome.counts["opened"] += 1
            reading = read(reader, np.random.default_rng(outcome.number))
    except VideoError as error:
        outcome.counts[REFUSED_WHOLE + error.cause] += 1
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        outcome.add(
            "exceptions", f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
        )
    report.working(1)
    if not outcome.counts["exceptions"]:
        plain = decode(path, VIDEOS[name].delay)
        Judge(plain, decode_undamaged(folder, name)).judge(outcome, reading)
    path.unlink()
    return outcome


def fuzz(numbers: Iterable[int], folder: Path, seed: int, backend: str) -> Iterator[Outcome]:
    """The outcomes of files, in any order. `folder` holds the undamaged videos."""
    work = partial(examine, folder=folder, seed=seed, backend=backend)
    with Workers(work, os.cpu_count() or 1, limit_sec=DEADLINE_SEC) as workers:
        for result in workers.results([number, number] for number in numbers):
            if result is not None:
                yield result[1]


# ------------------------------------------------------------------------------------------------
# Report


def table(names: Iterable[str], outcomes: dict[str, list[Outcome]], title: str) -> str:
    """A row for each name, and their sum."""
    rows = []
    for name in [*names, "all"]:
        counts = sum((outcome.counts for outcome in outcomes[name]), Counter())
        causes = [
            f"{count} {key.removeprefix(REFUSED_WHOLE)}"
            for key, count in sorted(counts.items())
            if key.startswith(REFUSED_WHOLE)
        ]
        cells = [str(counts[column]) for column in COLUMNS]
        rows.append([name, *cells[:2], ", ".join(causes), *cells[2:]])
    return format_table([title, *COLUMNS[:2], "refused whole", *COLUMNS[2:]], rows, "pipe")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="pyav", help="as of open_video")
    parser.add_argument("--limit-sec", type=float, default=float("inf"), help="no new file later")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one file, with all details")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where to put noted files")
    arguments = parser.parse_args()
    begin = time.monotonic()
    numbers = range(arguments.files) if arguments.only is None else [arguments.only]
    in_time = itertools.takewhile(lambda _: time.monotonic() - begin < arguments.limit_sec, numbers)
    grouped: dict[str, list[Outcome]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_videos(folder)
        for outcome in fuzz(in_time, folder, arguments.seed, arguments.backend):
            for name in (*names_of(outcome.number), "all"):
                grouped[name].append(outcome)
            if arguments.keep is not None and outcome.notes.keys() & set(NOTED):
                video, damage = names_of(outcome.number)
                arguments.keep.mkdir(parents=True, exist_ok=True)
                suffix = VIDEOS[video].suffix
                content = damaged(folder, arguments.seed, outcome.number)
                (
                    arguments.keep / f"{outcome.number}_{damage.replace(' ', '_')}{suffix}"
                ).write_bytes(content)
    if arguments.only is not None:
        (outcome,) = grouped["all"]
        print("{}: {}".format(*names_of(outcome.number)))
        for column, sentences in outcome.notes.items():
            print("\n".join(f"{column}: {sentence}" for sentence in sentences))
    print(table(DAMAGES, grouped, "damage"), end="\n\n")
    print(table(VIDEOS, grouped, "video"), end="\n\n")
    for column, video in itertools.product(NOTED, VIDEOS):
        noted = sorted((o for o in grouped[video] if column in o.notes), key=lambda o: o.number)
        if noted:
            numbers = listing([outcome.number for outcome in noted], at_most=10)
            example = noted[0].notes[column][0]
            print(f"{column} ({video}): files {numbers}; {noted[0].number}: {example}")
    print(
        f"{len(grouped['all'])} files, seed {arguments.seed}, backend {arguments.backend}, "
        f"{time.monotonic() - begin:.0f} s; PyAV {av.__version__}, "
        f"FFmpeg {av.ffmpeg_version_info}, hiera_video {hiera_video.__version__}"
    )
    sys.exit(any(outcome.counts[fault] for outcome in grouped["all"] for fault in FAULTS))


if __name__ == "__main__":
    main()
