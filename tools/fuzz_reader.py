"""Reads damaged videos, and compares the frames with those of the same videos before the damage.

    python tools/fuzz_reader.py [--files 10000] [--seed 0] [--backend pyav] [--limit-sec 1400]
                                [--keep FOLDER]
    python tools/fuzz_reader.py --only NUMBER [--seed 0] [--backend pyav] [--keep FOLDER]

Small videos of ten codecs and containers are damaged in eleven ways. Which way, where and how is a
function of (seed, number of the file), so that `--only` repeats one file; it prints what was found
in it. All frames of a file are read in order, and then some again in random order, by supervised
processes. FFmpeg decodes the same file from its first to its last packet, and what it flags is
noted: a packet that it refuses, and a packet or a frame that it calls corrupt.

Prints tables by damage and by video, and the numbers of the files with something to look at:

* refused whole: `open_video` raised VideoError, by its cause;
* right: pictures of the undamaged video, at their time, or at another that the file now states;
* refused: frames for which VideoError was raised;
* withheld: frames that were not returned, although FFmpeg decodes them as in the undamaged video,
  with nothing flagged at or before them in their group of pictures;
* wrong-flagged: other pictures, with something flagged at or before them in their group, other than
  a frame to which no frame refers. A fault;
* wrong-logged: the same, but FFmpeg only wrote a warning or an error to its log;
* wrong-unlike: other pictures, that FFmpeg does not decode from this file either;
* wrong-unflagged: the rest of them, which nobody can know to be wrong;
* moved: pictures of the undamaged video at a time at which neither it nor FFmpeg shows them,
  although the time stamps in the file are intact and `damage` is None. A fault;
* varied: frames that depend on the order in which they are read;
* crashes, hangs, exceptions: of the reader, any exception but VideoError. Faults;
* not judged: FFmpeg's own decode crashed or hung.

The exit code is 1 if there is a fault.
"""

import argparse
import contextlib
import hashlib
import itertools
import logging
import math
import os
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple, get_args

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from damaged_videos import (
    DAMAGES,
    FPS,
    NUM_FRAMES,
    VIDEOS,
    damaged,
    file_name,
    names_of,
    undamaged,
    write_videos,
)
from hiera_video.analysis.tables import format_table
from hiera_video.errors import MissingLibrary, listing
from hiera_video.runtime.workers import Death, Report, Workers
from hiera_video.settings.video import Backend
from hiera_video.video.open import open_video
from hiera_video.video.reader import VideoError, VideoReader

SAME_TIME_SEC = 0.25 / FPS
NUM_SINGLE_READS, NUM_CLIPS, CLIP_FRAMES = 8, 3, 4
DEADLINE_SEC = 10.0  # of the reader, which takes 0.1 s for a whole video

COLUMNS = ["files", "opened", "right", "refused"]
FAULTS = ["wrong-flagged", "moved", "crashes", "hangs", "exceptions"]
REMARKS = ["wrong-logged", "wrong-unlike", "varied", "withheld", "not judged"]
COLUMNS += ["wrong-unflagged", *FAULTS, *REMARKS]
REFUSED_WHOLE = "refused whole: "  # before a cause


class Frame(NamedTuple):
    """A frame, as FFmpeg decodes it."""

    picture: bytes  # hash of the pixels
    packet: int  # number in decoding order
    content: bytes  # of that packet
    group: int  # packet of the key frame with which the group of pictures begins
    time_sec: float  # inf if unknown

    def is_at(self, time_sec: float) -> bool:
        return abs(self.time_sec - time_sec) < SAME_TIME_SEC


@dataclass
class Decode:
    """A file as FFmpeg decodes it, packet by packet from the first one, with one thread."""

    stamps: list[tuple[int | None, int | None]] = field(default_factory=list)  # pts, dts of packets
    frames: list[Frame] = field(default_factory=list)  # in the order of presentation
    flagged: dict[int, str] = field(default_factory=dict)  # packet -> how
    logged: dict[int, str] = field(default_factory=dict)  # packet -> message
    alone: set[int] = field(default_factory=set)  # packets to which no other frame refers


def hash_of(picture: np.ndarray) -> bytes:
    return hashlib.blake2b(picture.tobytes(), digest_size=16).digest()


def decode(path: Path, delay: int) -> Decode:
    """Decodes a file as far as FFmpeg can; `delay` as of `Video`."""
    result, contents, keys, group = Decode(), list[bytes](), set[int](), 0
    # PyAV before 19 opens files whose metadata is not UTF-8; PyAV 19 has no such argument.
    has_option = hasattr(InputContainer, "metadata_errors")
    try:
        container = av.open(str(path), **{"metadata_errors": "replace"} if has_option else {})
    except (av.error.FFmpegError, OSError):
        return result
    with container:
        stream = next(iter(container.streams.video), None)
        if stream is None or stream.codec_context is None:
            return result
        # FFmpeg's parsers return a packet when the next one begins, and with the flags of that one.
        offsets = None
        if container.format.name in ("mpegts", "mpeg"):
            with av.open(str(path), options={"fflags": "noparse"}) as whole:
                packets = packets_of(whole, whole.streams[stream.index])
                offsets = {p.pos for p in packets if p is not None and p.is_corrupt}
        elif stream.codec_context.name == "h264":
            result.alone = packets_alone(path, stream.index)
        context = stream.codec_context
        context.thread_count, context.copy_opaque = 1, True
        for number, packet in enumerate(packets_of(container, stream)):
            if packet is not None:
                packet.opaque = number  # decoders copy it to the frame
                contents.append(bytes(packet))
                result.stamps.append((packet.pts, packet.dts))
                if packet.is_keyframe:
                    keys.add(number)
                if packet.is_corrupt if offsets is None else packet.pos in offsets:
                    result.flagged[number] = "the packet is corrupt"
            decoded: list[av.VideoFrame] = []
            with log() as messages:
                try:
                    decoded = context.decode(packet)
                except av.error.FFmpegError as error:
                    result.flagged.setdefault(number, f"refused, {error.strerror}")
            if messages:
                result.logged[number] = messages[0][2].strip()
            for frame in decoded:
                if frame.is_corrupt:
                    result.flagged.setdefault(frame.opaque, "the frame is corrupt")
                if frame.key_frame and frame.opaque in keys:  # decoder and container agree
                    group = frame.opaque
                known = frame.pts is not None
                time_sec = float((frame.pts - delay) * stream.time_base) if known else math.inf
                upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                result.frames.append(
                    Frame(hash_of(upright), frame.opaque, contents[frame.opaque], group, time_sec)
                )
    for number in keys.intersection(result.flagged):
        # What came before may have confused the decoder.
        if result.flagged[number].startswith("refused") and (frame := first_frame(path, number)):
            del result.flagged[number]
            time_sec = float((result.stamps[number][0] or 0) - delay) * float(stream.time_base)
            picture = hash_of(frame.to_ndarray(format="rgb24"))
            result.frames.append(Frame(picture, number, contents[number], number, time_sec))
    return result


def packets_alone(path: Path, stream_index: int) -> set[int]:
    """Packets that a decoder may leave out, because no other frame refers to theirs."""
    with av.open(str(path)) as container:
        stream = container.streams[stream_index]
        context = stream.codec_context
        context.thread_count, context.copy_opaque, context.skip_frame = 1, True, "NONREF"
        needed, number = set[int](), 0
        for number, packet in enumerate(packets_of(container, stream)):
            if packet is not None:
                packet.opaque = number
            try:
                needed.update(frame.opaque for frame in context.decode(packet))
            except av.error.FFmpegError:
                needed.add(number)
        return set(range(number)) - needed


def first_frame(path: Path, key: int) -> av.VideoFrame | None:
    """The frame of a packet from a decoder that begins with it; None if it fails or is flagged."""
    with av.open(str(path)) as container, contextlib.suppress(av.error.FFmpegError):
        stream = container.streams.video[0]
        for number, packet in enumerate(packets_of(container, stream)):
            if number == key and packet is not None:
                frames = [*stream.codec_context.decode(packet), *stream.codec_context.decode(None)]
                return next((frame for frame in frames if not frame.is_corrupt), None)
    return None


@contextlib.contextmanager
def log() -> Iterator[list[tuple[int, str, str]]]:
    """Collects FFmpeg's warnings and errors: (level, name, message)."""
    usual = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.WARNING)
    av.logging.set_skip_repeated(False)  # or a repetition is reported with a later packet
    with av.logging.Capture() as messages:
        yield messages
    av.logging.set_level(usual[0])
    av.logging.set_skip_repeated(usual[1])


def packets_of(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet | None]:
    """The packets that hold data, up to the end or to the first that cannot be read; then None."""
    # PyAV raises IndexError for a packet of a stream that was not announced.
    with contextlib.suppress(av.error.FFmpegError, IndexError):
        yield from (packet for packet in container.demux(stream) if packet.size)
    yield None


@cache
def decode_undamaged(folder: Path, name: str) -> Decode:
    return decode(undamaged(folder, name), VIDEOS[name].delay)


@dataclass
class Reading:
    """What the reader gave."""

    times_sec: Sequence[float]
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
                where = f"frame {position} at {reading.times_sec[position]:.3f} s"
                if len(pictures) > 1 or position in reading.refused:
                    error = " and an error" * (position in reading.refused)
                    outcome.add("varied", f"{where}: {len(pictures)} pictures{error}")
                for picture in pictures:
                    column, reason = self.verdict(picture, position, reading)
                    outcome.add(column, where + reason)
                returned |= pictures
        for frame in self.plain.frames:
            is_sound = self.is_intact(frame) and self.sign(frame) is None
            if is_sound and frame.picture not in returned:
                outcome.add("withheld", f"the frame of packet {frame.packet}")

    def verdict(self, picture: bytes, position: int, reading: Reading) -> tuple[str, str]:
        """The column of a picture that was returned, and the reason."""
        time_sec, frames = reading.times_sec[position], self.plain.frames

        def distance(frame: Frame) -> float:
            return abs(frame.time_sec - time_sec)

        true_time_sec = self.true_times.get(picture, math.inf)
        if abs(true_time_sec - time_sec) < SAME_TIME_SEC:
            return "right", ""
        if not frames:
            return "wrong-unlike", ""
        same = sorted((frame for frame in frames if frame.picture == picture), key=distance)
        shown = min(frames, key=distance)
        if not self.has_true_stamps:  # then the reader may have other times than FFmpeg
            if any(self.is_intact(frame) for frame in same):
                return "right", ""
            shown = frames[min(position, len(frames) - 1)]
        elif same and self.is_intact(same[0]):
            if same[0].is_at(time_sec):
                return "right", ""
            others = (p for n, p in reading.pictures.items() if n != position)
            is_repeated = any(picture in pictures for pictures in others)
            # Decoders may leave an earlier picture where a frame is damaged.
            if not (is_repeated and shown.is_at(time_sec) and not self.is_intact(shown)):
                if reading.damage is None:
                    return "moved", f" is that of {true_time_sec:.3f} s"
                return "right", ""
            same = []
        sign = self.sign(same[0] if same else shown)
        return sign or ("wrong-unflagged" if same else "wrong-unlike", "")

    def is_intact(self, frame: Frame) -> bool:
        """Whether packet and picture are as in the undamaged video."""
        return (frame.content, frame.picture) in self.true_frames

    def sign(self, frame: Frame) -> tuple[str, str] | None:
        """What was flagged, or else logged, first at or before a frame in its group of pictures."""
        signs = {"wrong-flagged": self.plain.flagged, "wrong-logged": self.plain.logged}
        for column, packets in signs.items():
            for packet in range(frame.group, frame.packet + 1):
                is_other = packet < frame.packet and (
                    packet in self.plain.alone or self.is_leading(packet, frame.group)
                )
                if packet in packets and not is_other:
                    return column, f": packet {packet}: {packets[packet]}"
        return None

    def is_leading(self, packet: int, key: int) -> bool:
        """Whether a packet is presented before a key frame that is decoded earlier.

        Its frame belongs to the group before, and no frame of the key frame's group refers to it.
        """
        (pts, _), (key_pts, _) = self.plain.stamps[packet], self.plain.stamps[key]
        return pts is not None and key_pts is not None and pts < key_pts


def examine(
    items: Sequence[int],
    deaths: Mapping[int, Death],
    report: Report,
    *,
    folder: Path,
    seed: int,
    backend: Backend,
) -> Outcome:
    """Reads and judges a file: the work of a supervised process.

    Args:
        items: the number of the file, twice: to be read, and to be decoded by FFmpeg.
    """
    outcome = Outcome(items[0], Counter(files=1))
    if deaths:
        ((item, death),) = deaths.items()
        column = {"crashed": "crashes", "hung": "hangs"}[death.cause]
        outcome.add(column if item == 0 else "not judged", death.sentence)
        return outcome
    name, _ = names_of(outcome.number)
    path, reading = folder / file_name(outcome.number), None
    path.write_bytes(damaged(folder, seed, outcome.number))
    logging.disable()  # each file would be warned of
    report.working(0)
    try:
        with open_video(path, backend, deadline_sec=DEADLINE_SEC) as reader:
            outcome.counts["opened"] += 1
            reading = read(reader, np.random.default_rng(outcome.number))
    except VideoError as error:
        outcome.counts[REFUSED_WHOLE + error.cause] += 1
    except MissingLibrary:  # not the file's fault
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{place.filename}, line {place.lineno}"
        outcome.add("exceptions", f"{type(error).__name__}: {error} ({where})")
    report.working(1)
    if not outcome.counts["exceptions"]:
        plain = decode(path, VIDEOS[name].delay)
        Judge(plain, decode_undamaged(folder, name)).judge(outcome, reading)
    path.unlink()
    return outcome


def fuzz(numbers: Iterable[int], folder: Path, seed: int, backend: Backend) -> Iterator[Outcome]:
    """The outcomes of files, in any order. `folder` holds the undamaged videos."""
    work = partial(examine, folder=folder, seed=seed, backend=backend)
    with Workers(work, os.cpu_count() or 1, limit_sec=DEADLINE_SEC) as workers:
        for result in workers.results([number, number] for number in numbers):
            if result is not None:
                yield result[1]


def table(title: str, names: Iterable[str], outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """Sums of the outcomes of each name."""
    rows = []
    for name in names:
        counts = sum((outcome.counts for outcome in outcomes[name]), Counter[str]())
        causes = ", ".join(
            f"{count} {column.removeprefix(REFUSED_WHOLE)}"
            for column, count in sorted(counts.items())
            if column.startswith(REFUSED_WHOLE)
        )
        rows.append([name, *(str(counts[column]) for column in COLUMNS), causes])
    return format_table([title, *COLUMNS, "refused whole"], rows, "pipe")


def summary(outcomes: Iterable[Outcome]) -> str:
    """Two tables, and for each fault or remark the numbers of files and an example."""
    grouped: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in sorted(outcomes, key=lambda outcome: outcome.number):
        for name in (*names_of(outcome.number), "all"):
            grouped[name].append(outcome)
    lines = [table("damage", [*DAMAGES, "all"], grouped), "", table("video", VIDEOS, grouped), ""]
    for column, video in itertools.product([*FAULTS, *REMARKS], VIDEOS):
        noted = [outcome for outcome in grouped[video] if outcome.counts[column]]
        if noted:
            numbers = listing([outcome.number for outcome in noted], at_most=10)
            example = f"in {noted[0].number}, {noted[0].notes[column][0]}"
            lines.append(f"{column}: {video}: {numbers}; {example}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", choices=get_args(Backend), default="pyav")
    parser.add_argument("--limit-sec", type=float, default=math.inf, help="begin no file later")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one file, with all details")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for files with a remark")
    arguments = parser.parse_args()
    begin, outcomes = time.monotonic(), list[Outcome]()
    numbers = range(arguments.files) if arguments.only is None else [arguments.only]
    in_time = itertools.takewhile(lambda _: time.monotonic() < begin + arguments.limit_sec, numbers)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_videos(folder)
        for outcome in fuzz(in_time, folder, arguments.seed, arguments.backend):
            outcomes.append(outcome)
            if arguments.keep is not None and any(outcome.counts[c] for c in FAULTS + REMARKS):
                arguments.keep.mkdir(parents=True, exist_ok=True)
                content = damaged(folder, arguments.seed, outcome.number)
                (arguments.keep / file_name(outcome.number)).write_bytes(content)
    if arguments.only is None:
        print(summary(outcomes))
    else:
        print(*names_of(arguments.only), sep=": ")
        print(", ".join(f"{column} {count}" for column, count in outcomes[0].counts.items()))
        for column in COLUMNS:
            for sentence in outcomes[0].notes[column] if column != "right" else ():
                print(f"{column}: {sentence}")
    print(
        f"\n{len(outcomes)} files, seed {arguments.seed}, backend {arguments.backend}, "
        f"{time.monotonic() - begin:.0f} s; PyAV {av.__version__}, FFmpeg {av.ffmpeg_version_info}"
    )
    sys.exit(any(outcome.counts[fault] for outcome in outcomes for fault in FAULTS))


if __name__ == "__main__":
    main()
