"""Messages and names as they are shown."""

import ast
import re
from pathlib import Path

import pytest

import hiera_video
from hiera_video.errors import MAX_MESSAGE, counted, message_line, nearest, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "Übung 日本語 \U0001f469\u200d\U0001f467.mp4",
            "Übung 日本語 \U0001f469\u200d\U0001f467.mp4",
        ),
        ("\x1b[31m\a\b\r\n\t\0\x7f\x9b", r"\x1b[31m\x07\x08\r\n\t\x00\x7f\x9b"),
        ("\u202egpj\u2066\u200f\u061c\u2028", r"\u202egpj\u2066\u200f\u061c\u2028"),
        ("\udcff\ud800", r"\udcff\ud800"),
        (r"C:\new", r"C:\new"),
    ],
)
def test_text_that_controls_a_terminal_is_shown_as_escapes(text, shown):
    assert printable(text) == shown


def test_of_a_very_long_message_the_beginning_is_shown():
    assert message_line("a" * MAX_MESSAGE) == "a" * MAX_MESSAGE
    assert message_line("a" * 10**6) == "a" * MAX_MESSAGE + "... (1000000 characters)"


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "video", "1 video"),
        (0, "video", "0 videos"),
        (2, "key frame", "2 key frames"),
        (1, "class", "1 class"),
        (3, "class", "3 classes"),
        (4, "process", "4 processes"),
        (2, "box", "2 boxes"),
    ],
)
def test_counts_and_their_nouns(number, noun, text):
    assert counted(number, noun) == text


# A number that is written by itself, and not as in `1 of 2 videos`.
UNCOUNTED = re.compile(
    r"(?<!of )(?<!of the )(?<!of its )(?<!first )\{(?!len\(row\.labels\))[^{}]*\} "  # of two labels
    r"(actions|boxes|classes|key frames|labels|processes|records|rows|videos)\b"
)


def test_no_message_says_1_classes_or_what_is_needed():
    """Numbers are written by `counted`, and what is right is `expected`."""
    package = Path(hiera_video.__file__).parent
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\bneeded (is|are)\b", text), path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.JoinedStr):
                found = UNCOUNTED.search(ast.unparse(node))
                assert found is None, f"{path}:{node.lineno}: {found[0]}"


@pytest.mark.parametrize(
    ("name", "known", "near"),
    [
        ("dgo.mp4", "zero.mp4 dog.mp4", "dog.mp4"),
        ("dgo.mp4", "zero.mp4 god_2.mp4", ""),
        ("cat.mp4", "dog.mp4", ""),
        ("trian", "val train", "train"),
        ("Hiera-Base-16x224", "hiera_base_16x224 hiera_base_224", "hiera_base_16x224"),
        ("frames", "num_frames num_heads", "num_frames"),
        ("num", "num_frames num_heads", ""),
        ("lr", "gr l", ""),
        ("hiera_bsae_224", "hiera_huge_224 hiera_base_224", "hiera_base_224"),
        ("hiera_tiny_1", "hiera_base_1 hiera_tiny_2", "hiera_tiny_2"),
        ("bb.a", "ba.a bb.b", "bb.b"),  # one mistake in each: the same beginning
        ("", "a", ""),
        ("a" * 500, "a" * 499, ""),  # too long to be compared
    ],
)
def test_the_nearest_name(name, known, near):
    assert nearest(name, known.split()) == near
