"""Errors whose message is all that the user needs: the command line prints them without a trace."""

import errno
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice, takewhile

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MAX_MESSAGE = 10_000  # characters of a message in a terminal or a log
# Names that are compared with a misspelt one, and letters of a name: 2 s at most, measured.
MAX_COMPARED, MAX_LETTERS = 2000, 100
OTHER_WEIGHTS = "other weights, for example of an earlier checkpoint"  # where some are not finite

# Of names, and of messages of libraries, what a terminal acts upon (control characters), what
# shows text in another order or breaks a line, and surrogates, which cannot be encoded.
UNSAFE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


class UserError(Exception):
    """A mistake in what was asked for, or a circumstance that the user can change.

    The message names the file, key or value, what is allowed, and what to do. Any other exception
    is a defect of this package or of a library, and is shown with its trace.
    """

    exit_code = 1


class ConfigError(UserError, ValueError):
    """A mistake in a configuration: the message names the key, its value and what is allowed."""

    exit_code = 2


class AnnotationError(UserError, ValueError):
    """A list, a folder or a file of class names cannot be used. The message is one line."""


class UnknownClassError(AnnotationError):
    """A label that is not among the classes."""


class ModelError(UserError, ValueError):
    """Arguments, sizes or input that no model here takes."""


class WeightsError(ModelError):
    """Weights that cannot be read, or that do not fit what they are needed for."""


class WeightsNotFoundError(WeightsError, FileNotFoundError):
    """No weights of that name."""

    exit_code = 2


class OutputExistsError(UserError, FileExistsError):
    """Something that must not be replaced stands where the output goes."""


class OutputError(UserError, OSError):
    """A file or folder that cannot be written: (errno or None, the reason, its path)."""

    def __str__(self) -> str:
        advice = "make room" if self.errno in DISK_IS_FULL else "make it writable"
        return (
            f"{self.filename} cannot be written ({self.strerror}): {advice}, and run the same "
            "command again"
        )


class FetchError(UserError, ConnectionError):
    """Something that cannot be fetched from, or sent to, another machine."""


class NotFetched(FetchError):
    """What a dry run does not fetch; the message is what a run would fetch."""

    exit_code = 0


class MissingLibrary(UserError, ImportError):
    """An optional library is not installed or does not load; the message has the pip command."""


@contextmanager
def configured() -> Iterator[None]:
    """Turns errors of what is built inside, which depends on settings only, into ConfigErrors.

    For sizes that do not fit together and for names of models, which only the models know.
    """
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from None


def printable(text: str) -> str:
    """The text as one line for a terminal or a log, with escapes for unsafe characters."""
    return UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def message_line(text: str) -> str:
    """A message as `printable`, of a very long one the beginning."""
    line = printable(text)
    return line if len(line) <= MAX_MESSAGE else f"{line[:MAX_MESSAGE]}... ({len(line)} characters)"


def message_lines(text: str) -> str:
    """A text of several lines, such as a trace, each as `message_line`."""
    return "\n".join(map(message_line, text.split("\n")))


def listing(items: Sequence[object], at_most: int = 5) -> str:
    """The first `at_most` items for a message, and how many more there are."""
    text = ", ".join(repr(item) for item in items[:at_most])
    return text + (f" and {len(items) - at_most} more" if len(items) > at_most else "")


def counted(number: int, noun: str) -> str:
    """`1 video`, `3 videos`, `2 classes`, `2 boxes`."""
    ending = "" if number == 1 else "es" if noun.endswith(("s", "x")) else "s"
    return f"{number} {noun}{ending}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'NAME'?` with the most similar known name, or "" if none is similar."""
    near = nearest(name, known)
    return f"; did you mean {near!r}?" if near else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that was probably meant, or "" if none is similar.

    Similar are names of which one letter in four is wrong, missing, too many, or swapped with the
    next; and names that contain `name` and are at most twice as long. Case, spaces, hyphens and
    underscores do not count. Of names that are equally similar, the one with the longest common
    beginning is taken. Only the first `MAX_COMPARED` names are compared, and none that is longer
    than `MAX_LETTERS`.
    """
    own = _letters(name)
    best, found = (MAX_MESSAGE, 0), ""
    for other in islice(known, MAX_COMPARED):
        letters = _letters(other)
        longest = max(len(own), len(letters))
        if longest > MAX_LETTERS:
            continue
        allowed = max(longest > 2, longest // 4)
        if len(own) > 2 and own in letters and len(letters) <= 2 * len(own):
            allowed = longest
        fewest = max(abs(len(own) - len(letters)), len({*own} ^ {*letters}) // 2)  # mistakes
        if fewest > min(allowed, best[0]):
            continue
        mistakes = _mistakes(own, letters, min(allowed, best[0]))
        common = takewhile(lambda pair: pair[0] == pair[1], zip(own, letters, strict=False))
        rank = (mistakes, -len(list(common)))
        if mistakes <= allowed and rank < best:
            best, found = rank, other
    return found


def _letters(name: str) -> str:
    return re.sub("[-_ ]", "", name.casefold())


def _mistakes(a: str, b: str, at_most: int) -> int:
    """Letters to replace, insert, delete, or swap with the next, to make `b` of `a`; if they are
    more than `at_most`, any larger number."""
    older: Sequence[int] = ()
    before: Sequence[int] = range(len(b) + 1)
    for i, letter in enumerate(a):
        row = [i + 1]
        for j, other in enumerate(b):
            row.append(min(before[j + 1] + 1, row[j] + 1, before[j] + (letter != other)))
            if i and j and letter == b[j - 1] and other == a[i - 1]:
                row[-1] = min(row[-1], older[j - 1] + 1)
        if min(row) > at_most:  # no later row has less
            return min(row)
        older, before = before, row
    return before[-1]
