"""Errors whose message is all that the user needs: the command line prints them without a trace."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in what was asked for, or a circumstance that the user can change.

    The message names the file, key or value, what is allowed, and what to do. Any other exception
    is a defect of this package or of a library, and is shown with its trace.
    """

    exit_code = 1


class ConfigError(UserError, ValueError):
    """A mistake in a configuration: the message names the key, its value and what is allowed."""

    exit_code = 2


class ModelError(UserError, ValueError):
    """Arguments, sizes or input that no model here takes."""


class WeightsError(ModelError):
    """Weights that cannot be read, or that do not fit what they are needed for."""


class WeightsNotFoundError(WeightsError, FileNotFoundError):
    """No weights of that name."""


class OutputExistsError(UserError, FileExistsError):
    """Something that must not be replaced stands where the output goes."""


class FetchError(UserError, ConnectionError):
    """Something that cannot be fetched from, or sent to, another machine."""


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


def listing(items: Sequence[object], at_most: int = 5) -> str:
    """The first `at_most` items for a message, and how many more there are."""
    text = ", ".join(repr(item) for item in items[:at_most])
    return text + (f" and {len(items) - at_most} more" if len(items) > at_most else "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'NAME'?` with the most similar known name, or "" if none is similar."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
