"""What is looked at before a run begins: whether listed files are there and fit the model."""

import logging
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from hiera_video.data.batches import Failure
from hiera_video.data.boxes.keyframes import KeyframeRecord
from hiera_video.data.instances.coco import InstanceRecord
from hiera_video.data.loader import num_workers
from hiera_video.data.videos.records import VideoRecord
from hiera_video.errors import ConfigError, counted, listing
from hiera_video.files import similar_path
from hiera_video.runtime.progress import Progress
from hiera_video.runtime.workers import Death, Report, Workers
from hiera_video.settings.video import Listed, Reading
from hiera_video.video.content import has_picture_name, is_frame_folder
from hiera_video.video.open import OpenVideo, opener
from hiera_video.video.reader import VideoError

logger = logging.getLogger(__name__)

Records = Sequence[VideoRecord | KeyframeRecord | InstanceRecord]

# Files that are looked up at once. A local disk answers 300,000 in 1 to 2 s, with any number of
# threads; one in a network takes up to a millisecond for each, and answers many at once.
NUM_THREADS = 16
NUM_LOOKED_UP = 256  # by a thread before it takes others
NUM_OPENED = 20  # pictures of which one suffices

# Words for left and right.
SIDES = """
    left leftward leftwards right rightward rightwards
    links linke linken linker linkes rechts rechte rechten rechter rechtes
    gauche droite droit izquierda izquierdo derecha derecho sinistra sinistro destra destro
    esquerda esquerdo direita direito vänster höger venstre høyre højre
    lewo lewa lewy lewej prawo prawa prawy prawej vlevo levá levý vpravo pravá pravý
    влево слева налево левый левая левой вправо справа направо правый правая правой
"""


def check_videos(
    key: str, source: str, records: Records, data: Listed, num_frames: int = 1
) -> Counter[str]:
    """Looks up the files of all records, and with `data.check` decodes them; logs what is wrong.

    Args:
        key: of the setting that names the list, for messages.
        source: the list.
        num_frames: of a clip of the model.

    Returns:
        The numbers of records that cannot be read, by cause; of a film that does not decode, one.

    Raises:
        ConfigError: folders of frames whose rate nothing states; pictures for a video model.
    """
    modes = _modes({record.path for record in records})
    there = [record for record in records if modes[record.path]]
    if missing := [path for path in dict.fromkeys(r.path for r in records) if not modes[path]]:
        number, first = f"{len(missing)} of {len(modes)} files", missing[0]
        hint = similar_path(first)
        logger.warning(
            "%s: %s of %s are missing, the first is %s%s", key, number, source, first, hint
        )
    if isinstance(data, Reading):
        _check_rates(key, there, modes, data)
        if num_frames > 1 and not data.stills:
            _check_moving(key, there, num_frames, data)
    found = Counter({"missing": len(records) - len(there)} if missing else {})
    if data.check == "decode":
        for failure in decoding_failures(there, data, num_frames):
            found[failure.cause] += 1
            logger.warning("%s", failure.message)
        causes = ", ".join(f"{count} {cause}" for cause, count in found.most_common())
        files = counted(len(modes), "file")
        logger.info("%s: %s checked: %s", key, files, causes or "all can be read")
    return found


def _modes(paths: Iterable[str]) -> dict[str, int]:
    """The mode of each file, 0 if there is none."""

    def look_up(some: Sequence[str]) -> list[int]:
        modes = []
        for path in some:
            try:
                modes.append(os.stat(path).st_mode)
            except (OSError, ValueError):  # ValueError: no file can have this name
                modes.append(0)
        return modes

    ordered = sorted(paths)
    parts = [ordered[i : i + NUM_LOOKED_UP] for i in range(0, len(ordered), NUM_LOOKED_UP)]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = [mode for modes in pool.map(look_up, parts) for mode in modes]
    return dict(zip(ordered, found, strict=True))


def _check_rates(key: str, records: Sequence[Any], modes: Mapping[str, int], data: Reading) -> None:
    folders = [
        record.path
        for record in records
        if stat.S_ISDIR(modes[record.path])
        and (record.frames_fps or data.frames_fps) is None
        and is_frame_folder(record.path)
    ]
    if folders:
        raise ConfigError(
            f"{key}: {len(folders)} of {len(modes)} videos are folders of frames, such as "
            f"{folders[0]}; set data.frames_fps to their frames per second, or state them in a "
            "column fps of the list"
        )


def _check_moving(key: str, records: Sequence[Any], num_frames: int, data: Reading) -> None:
    pictures = [record for record in records if has_picture_name(record.path)]
    open_video = opener(data)
    for record in pictures[:NUM_OPENED]:  # some kinds of pictures may move
        try:
            with record.open(open_video) as video:
                is_still = len(video) == 1
        except VideoError:
            continue  # it is found when it is read
        if is_still:
            frames = "each video needs a folder of its own in the folder of its class"
            if data.frames_fps is None:
                frames = "set data.frames_fps to their frames per second"
            raise ConfigError(
                f"{key}: {len(pictures)} of {len(records)} files are pictures, such as "
                f"{record.path}, and clips of the model have {num_frames} frames; if they are "
                f"frames of videos, in one folder for each video, {frames}; to take pictures as "
                "clips in which nothing moves, set data.stills=true; a model of pictures, such as "
                "hiera_tiny_224, takes them as they are"
            )


def warn_of_pictures(paths: Sequence[str], num_frames: int, checkpoint: str) -> None:
    """Logs that a model of several frames sees pictures as clips, if there are any."""
    pictures = [path for path in paths if has_picture_name(path)]
    if pictures and num_frames > 1:
        logger.warning(
            "%d of %d files are pictures, such as %s; %s sees each as a clip in which nothing "
            "moves, unless it is animated; where folders hold the frames of videos, set "
            "data.frames_fps to their frames per second",
            len(pictures),
            len(paths),
            pictures[0],
            checkpoint,
        )


def warn_of_unreadable(records: Records, open_video: OpenVideo) -> int:
    """Opens all records, decodes nothing, and logs which cannot be opened; returns their number."""
    num_failed = 0
    for record in records:
        try:
            record.open(open_video).close()
        except VideoError as error:
            num_failed += 1
            logger.warning("cannot be read: %s", error)
    return num_failed


def decoding_failures(records: Records, data: Listed, num_frames: int = 1) -> list[Failure]:
    """Decodes all frames of all records, in supervised processes; those of a film once.

    Args:
        num_frames: of a clip, as for `opener`.

    Returns:
        The records whose frames cannot all be read, in order.
    """
    distinct = {(r.path, getattr(r, "part", None)): r for r in records}
    jobs = [[record] for record in distinct.values()]
    work = partial(_decode, opener(data, num_frames))
    failures: dict[int, Failure | None] = {}
    with Progress(unit="file", total=len(jobs)) as bar:
        count = min(num_workers(data, 1), len(jobs))
        if count < 1:
            for number, job in enumerate(jobs):
                failures[number] = work(job, {}, None)
                bar.update()
        else:
            with Workers(work, count, limit_sec=2 * data.deadline_sec) as workers:
                for result in workers.results(jobs):
                    if result is not None:
                        failures[result[0]] = result[1]
                        bar.update()
    return [failure for _, failure in sorted(failures.items()) if failure is not None]


def _decode(
    open_video: OpenVideo,
    job: Sequence[Any],
    deaths: Mapping[int, Death],
    report: Report | None,
) -> Failure | None:
    """Reads one record to its end."""
    (record,) = job
    if death := deaths.get(0):
        return Failure.of_death(record, death)
    try:
        with record.open(open_video) as video:
            for _ in video:
                if report is not None:
                    report.working(0)
    except VideoError as error:
        return Failure(record.name, record.path, error.cause, str(error))
    return None


def warn_of_similar(names: Iterable[str]) -> None:
    """Logs a warning if names of classes differ only in case, blanks or Unicode form."""
    alike: dict[str, list[str]] = {}
    for name in names:
        plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        alike.setdefault(re.sub(r"[\s_]+", " ", plain).strip(), []).append(name)
    if groups := [" and ".join(map(repr, group)) for group in alike.values() if group[1:]]:
        logger.warning(
            "names of classes differ only in capitals, blanks, _ or Unicode form: %s; if they are "
            "one class, write it in one way in all lists",
            "; ".join(groups[:5]) + (f" and {len(groups) - 5} more" if groups[5:] else ""),
        )


def warn_of_flips(names: Iterable[str], flip: bool) -> None:
    """Logs a warning if flips are on and names of classes distinguish left and right."""
    sided = [name for name in names if _names_a_side(name)] if flip else []
    if sided:
        logger.warning(
            "augment.flip is true, so that half of the clips are mirrored, but names of classes "
            "distinguish left and right: %s; set augment.flip=false, unless mirrored videos keep "
            "their class",
            listing(sided),
        )


def warn_of_still_model(name: str, num_frames: int, records: Sequence[VideoRecord]) -> None:
    """Logs a warning if a model of pictures is about to be trained on videos.

    Args:
        name: of the model.
        num_frames: of its clips.
    """
    if num_frames > 1:
        return
    if videos := [record for record in records if not has_picture_name(record.path)]:
        moving = re.sub(r"(_abswin)?_\d+$", "_16x224", name.partition(".")[0])
        logger.warning(
            "%d of %d training files are videos, and %s is a model of pictures: it learns from "
            "single frames of them, not from motion; model.name=%s is for videos",
            len(videos),
            len(records),
            name,
            moving if moving.endswith("_16x224") else "hiera_base_16x224",
        )


def _names_a_side(name: str) -> bool:
    text = unicodedata.normalize("NFC", name)
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)  # turnLeft
    words = {word.casefold() for word in re.findall(r"[^\W\d_]+", spaced)}
    return not words.isdisjoint(SIDES.split()) or re.search("[左右]|왼|오른", text) is not None
