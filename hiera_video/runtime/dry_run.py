"""Dry runs: they check what a run would do, and neither download nor write anything."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from hiera_video.errors import UserError
from hiera_video.settings.base import Settings

logger = logging.getLogger(__name__)
_is_dry: ContextVar[bool] = ContextVar("is_dry", default=False)


@contextmanager
def running_dry(is_dry: bool) -> Iterator[None]:
    """Whether what happens within is a dry run."""
    token = _is_dry.set(is_dry)
    try:
        yield
    finally:
        _is_dry.reset(token)


def is_dry_run() -> bool:
    return _is_dry.get()


@contextmanager
def in_the_way(settings: Settings, key: str) -> Iterator[None]:
    """Turns errors about what stands in the default output folder into warnings, in a dry run.

    It is there by chance: the run may be meant for another folder.

    Args:
        key: of the setting that names the folder.
    """
    try:
        yield
    except UserError as error:
        is_default = getattr(settings, key) == type(settings).model_fields[key].default
        if not (is_dry_run() and is_default):
            raise
        logger.warning("the run itself would end here: %s", error)
