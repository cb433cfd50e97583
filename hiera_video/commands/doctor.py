"""`hiera-video doctor`: what is installed, whether it works, and what to do where it does not."""

import logging

from hiera_video.diagnosis.report import diagnose, lines
from hiera_video.runtime.logging import setup_logging
from hiera_video.runtime.results import print_planned, print_result
from hiera_video.settings.tools import DoctorSettings

logger = logging.getLogger(__name__)

CHECKS = ("versions", "libraries", "machine", "devices", "decoders", "self-test")


def run(config: DoctorSettings, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Prints the report; the exit code is 1 if something that is installed does not work."""
    setup_logging(quiet=as_json)
    if dry_run:
        print_planned(CHECKS, as_json=as_json)
        return 0
    logger.info("this takes about 20 seconds")
    diagnosis = diagnose()
    print_result(diagnosis.record(), lines(diagnosis), as_json=as_json)
    return 1 if diagnosis.failed else 0
