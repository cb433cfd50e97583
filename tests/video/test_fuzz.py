"""Damaged videos: no frame is returned of which FFmpeg said that it is damaged; and the program
that tries this, tools/fuzz_reader.py, finds readers that return one."""

import sys
from collections import Counter

import numpy as np
import pytest

import damaged_videos
import fuzz_reader
from damaged_videos import DAMAGES, NUM_FRAMES, VIDEOS, damaged, names_of, undamaged
from fuzz_reader import Decode, Judge, Outcome, Reading
from hiera_video.runtime.workers import Death
from hiera_video.video.open import open_video

MPEG_2 = "MPEG-2 with B-frames, mpg"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    damaged_videos.write_videos(folder)
    return folder


def decode_damaged(folder, data: bytes, name: str) -> Decode:
    path = folder / f"damaged{VIDEOS[name].suffix}"
    path.write_bytes(data)
    return fuzz_reader.decode(path, VIDEOS[name].delay)


def reading_of(decode: Decode, **changes) -> Reading:
    """What a reader gives that returns whatever FFmpeg decodes."""
    pictures = {position: {frame.picture} for position, frame in enumerate(decode.frames)}
    times_sec = [frame.time_sec for frame in decode.frames]
    return Reading(**{"times_sec": times_sec, "pictures": pictures, **changes})


def judged(plain: Decode, clean: Decode, reading: Reading | None) -> Counter[str]:
    outcome = Outcome(0)
    Judge(plain, clean).judge(outcome, reading)
    return +outcome.counts  # without zeros


def test_the_reader_returns_no_frame_that_is_known_to_be_damaged(monkeypatch, capsys):
    """Each kind of damage of each codec."""
    files = len(VIDEOS) * len(DAMAGES)
    monkeypatch.setattr(sys, "argv", ["fuzz_reader.py", "--files", str(files)])
    with pytest.raises(SystemExit) as ended:
        fuzz_reader.main()
    report = capsys.readouterr().out
    assert not ended.value.code, report
    assert f"{files} files, seed 0, backend pyav" in report


@pytest.mark.parametrize("name", VIDEOS)
def test_all_frames_of_an_undamaged_video_are_right(folder, name):
    decode = fuzz_reader.decode_undamaged(folder, name)
    assert len({frame.picture for frame in decode.frames}) == NUM_FRAMES
    assert len({frame.group for frame in decode.frames}) > 2
    with open_video(undamaged(folder, name)) as reader:
        reading = fuzz_reader.read(reader, np.random.default_rng(0))
    assert judged(decode, decode, reading) == {"right": NUM_FRAMES}


def test_damage_is_a_function_of_seed_and_number(folder):
    pairs = set()
    for number in range(len(VIDEOS) * len(DAMAGES)):
        data = damaged(folder, 0, number)
        pairs.add(names_of(number))
        assert data == damaged(folder, 0, number)
        assert data != undamaged(folder, names_of(number)[0]).read_bytes()
    assert len(pairs) == len(VIDEOS) * len(DAMAGES)


def test_a_reader_that_returns_damaged_frames_is_found(folder):
    """A packet of the second group of pictures is overwritten, to which others refer."""
    clean = fuzz_reader.decode_undamaged(folder, MPEG_2)
    group = clean.frames[NUM_FRAMES // 2].group
    lost = next(frame for frame in clean.frames if frame.packet == group + 3)
    data = bytearray(undamaged(folder, MPEG_2).read_bytes())
    place = data.index(lost.content[100:150])
    data[place : place + 100] = b"\xff" * 100
    plain = decode_damaged(folder, data, MPEG_2)
    right = [frame.picture for frame in clean.frames]
    wrong = [n for n, frame in enumerate(plain.frames) if frame.picture not in right]
    assert {clean.frames[n].group for n in wrong} == {group}
    assert len(plain.frames) == NUM_FRAMES

    counts = judged(plain, clean, reading_of(plain))
    assert counts == {"right": NUM_FRAMES - len(wrong), "wrong-flagged": len(wrong)}
    lazy = reading_of(plain)
    lazy.pictures |= {position: {plain.frames[0].picture} for position in wrong}
    assert judged(plain, clean, lazy) == counts
    careful = reading_of(plain, refused=set(wrong))
    for position in wrong:
        del careful.pictures[position]
    counts = judged(plain, clean, careful)
    assert counts == {"right": NUM_FRAMES - len(wrong), "refused": len(wrong)}


def test_a_reader_that_moves_frames_or_keeps_them_back_is_found(folder):
    clean = fuzz_reader.decode_undamaged(folder, MPEG_2)
    times_sec = [frame.time_sec for frame in clean.frames]
    late = reading_of(clean, times_sec=[time_sec + 0.04 for time_sec in times_sec])
    assert judged(clean, clean, late) == {"moved": NUM_FRAMES}
    late.damage = "is damaged: a frame is missing"
    assert judged(clean, clean, late) == {"right": NUM_FRAMES}
    assert judged(clean, clean, None) == {"withheld": NUM_FRAMES}


def test_frames_that_depend_on_the_order_of_reading_are_found(folder):
    clean = fuzz_reader.decode_undamaged(folder, MPEG_2)
    reading = reading_of(clean, refused={3})
    reading.pictures[5] = {clean.frames[5].picture, b"another one"}
    counts = judged(clean, clean, reading)
    assert counts == {"right": NUM_FRAMES, "refused": 1, "varied": 2, "wrong-unlike": 1}


@pytest.mark.parametrize(
    ("item", "cause", "column"),
    [(0, "crashed", "crashes"), (0, "hung", "hangs"), (1, "crashed", "not judged")],
)
def test_a_dead_process_is_counted_for_reader_or_ffmpeg(folder, item, cause, column):
    deaths = {item: Death(cause, "its decoding process died", 1.0)}
    outcome = fuzz_reader.examine([7, 7], deaths, None, folder=folder, seed=0, backend="pyav")
    assert outcome.counts == {"files": 1, column: 1}
