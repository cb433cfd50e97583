"""The messages of commands."""

import logging

from hiera_video.runtime.logging import setup_logging


def test_a_message_is_one_line_whatever_it_quotes(tmp_path, capsys):
    setup_logging(tmp_path / "log")
    logger = logging.getLogger("hiera_video.x")
    logger.warning("skipped %s", "\x1b[31ma\nb\r\udcff")
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        logger.exception("ä\u202e")
    for shown in ((tmp_path / "log").read_text("utf-8"), capsys.readouterr().err):
        first, second, *trace = shown.splitlines()
        assert first.endswith(r" W skipped \x1b[31ma\nb\r\udcff")
        assert second.endswith(r" E ä\u202e")
        assert trace[0] == "Traceback (most recent call last):"
        assert trace[-1] == r"ValueError: \x1b[2J"
