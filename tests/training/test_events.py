"""Event files, as TensorBoard reads them."""

from __future__ import annotations

import pytest

from hiera_video.errors import OutputError
from hiera_video.training.events import EventFile

pytest.importorskip("tensorboard")


def test_a_file_that_cannot_be_written_is_an_error_at_once(tmp_path, files_up_to):
    events = EventFile(tmp_path / "tb", 1)
    events.add(1, {"train/loss": 0.5})
    (path,) = (tmp_path / "tb").iterdir()
    with files_up_to(path.stat().st_size + 5):
        with pytest.raises(OutputError, match=r"tfevents\S* cannot be written"):
            events.add(2, {"train/loss": 0.5})
        with pytest.raises(OutputError, match=r"tfevents\S* cannot be written"):
            EventFile(tmp_path / "tb", 3).add(3, {f"train/{n}": 0.5 for n in range(20)})
