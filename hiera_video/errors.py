"""Errors whose message is all that the user needs: the command line prints them without a trace."""

from __future__ import annotations

from collections.abc import Iterator
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


@contextmanager
def configured() -> Iterator[None]:
    """Turns errors of what is built inside, which depends on settings only, into ConfigErrors.

    For sizes that do not fit together and for names of models, which only the models know.
    """
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from None
