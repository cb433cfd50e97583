"""Pictures with objects as samples: `hiera_video.data.instances.datasets`."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hiera_video.data.instances.coco import read_coco
from hiera_video.data.instances.datasets import TrainingPictures
from hiera_video.data.instances.transforms import ScaleJitter
from hiera_video.settings.training import InstanceAugment
from hiera_video.video.open import open_video
from hiera_video.video.reader import VideoError

ORIENTATION = 0x0112
TURNED_BACK = {  # what is stored of the upright picture, by the value of the tag
    1: None,
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}


def written(folder: Path, orientation: int, height: int, width: int) -> TrainingPictures:
    """A picture with a white corner, of which the list says `height` x `width`."""
    upright = np.zeros((40, 64, 3), np.uint8)
    upright[4:12, 2:10] = 255
    picture = Image.fromarray(upright)
    if (turn := TURNED_BACK[orientation]) is not None:
        picture = picture.transpose(turn)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    picture.save(folder / "a.jpg", exif=exif, quality=100)
    box = {"bbox": [2, 4, 8, 8], "segmentation": [[2, 4, 10, 4, 10, 12, 2, 12]]}
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "height": height, "width": width}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "area": 64, "iscrowd": 0, **box}
        ],
        "categories": [{"id": 1, "name": "corner"}],
    }
    (folder / "list.json").write_text(json.dumps(content))
    still = InstanceAugment(scale=(1, 1), flip=False)
    records = read_coco(folder / "list.json").records
    return TrainingPictures(records, ScaleJitter((64, 64), still), num_repeats=1, seed=0)


@pytest.mark.parametrize("orientation", TURNED_BACK)
def test_masks_are_of_the_upright_picture(tmp_path: Path, orientation: int) -> None:
    pictures = written(tmp_path, orientation, 40, 64)
    (record,) = pictures.records
    with record.open(open_video) as video:
        (sample,) = pictures.sample(video, record, (0, 0, 0))
    (mask,) = sample.masks.astype(bool)
    shown = sample.clip[0, :40].mean(axis=-1)
    assert sample.boxes.tolist() == [[2, 4, 10, 12]]
    assert shown[mask[:40]].min() > 200
    assert shown[~mask[:40]].max() < 60


@pytest.mark.parametrize(
    ("size", "remedy"),
    [((64, 40), "remove the orientation"), ((64, 41), "fetch the picture again")],
)
def test_a_list_of_other_sizes(tmp_path: Path, size: tuple[int, int], remedy: str) -> None:
    pictures = written(tmp_path, 6, *size)
    (record,) = pictures.records
    with (
        record.open(open_video) as video,
        pytest.raises(VideoError, match=f"40 x 64 .* image 7 .* {size[0]} x .*{remedy}"),
    ):
        pictures.sample(video, record, (0, 0, 0))


def test_the_masks_of_a_picture_are_not_in_memory_together(tmp_path: Path) -> None:
    pictures = written(tmp_path, 1, 40, 64)
    Image.new("RGB", (1000, 1000)).save(tmp_path / "a.jpg")
    content = json.loads((tmp_path / "list.json").read_text())
    content["images"][0] |= {"height": 1000, "width": 1000}
    (annotation,) = content["annotations"]
    content["annotations"] = [{**annotation, "id": i} for i in range(1, 41)]
    (tmp_path / "list.json").write_text(json.dumps(content))
    (record,) = read_coco(tmp_path / "list.json").records
    with record.open(open_video) as video:
        pictures.sample(video, record, (0, 0, 0))  # loads the library
        tracemalloc.start()
        (sample,) = pictures.sample(video, record, (0, 0, 0))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert len(sample.masks) == 40
    assert peak < 20e6  # all 40 have 40e6 bytes, the picture has 3e6
