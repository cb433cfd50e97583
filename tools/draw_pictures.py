"""The pictures of the documentation, from the demos and a short pretraining.

    pip install '.[report]' playwright scikit-learn
    python tools/draw_pictures.py WORK_DIR

Runs the commands `demo` and `demo ava`, pretrains on drifting digits, writes reports as users do,
and takes pictures of them with Chromium, which must be installed. WORK_DIR keeps the runs: what is
there is not trained again. The pictures go to docs/pictures/.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import cv2
from playwright.sync_api import Page, sync_playwright

import pretraining_helps
from hiera_video.demo.motions import DemoData
from hiera_video.files import replacing

PICTURES = Path(__file__).resolve().parents[1] / "docs/pictures"
WIDTH, HEIGHT = 1200, 1150
JPEG_QUALITY = 85
SEED, LABELLED, PRETRAIN_STEPS, PRETRAIN_LR = 0, 5, 5000, "5e-4"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work_dir", type=Path)
    work = parser.parse_args().work_dir.absolute()
    PICTURES.mkdir(exist_ok=True)
    command = pretraining_helps.command

    command("demo", f"output_dir={work / 'demo'}")
    command("demo", "ava", f"output_dir={work / 'ava'}")
    data, run = DemoData(work / "demo/data"), work / "demo/run"
    checkpoint = f"checkpoint={run}"
    command(
        "evaluate",
        checkpoint,
        f"data.val={data.train}",
        f"output_dir={run / 'eval_train'}",
        "overwrite=true",
    )
    mae = pretrained(work / "mae")
    digits = sorted((work / "mae/data/videos").glob("*.mp4"))[:1]
    shown = work / "shown"
    command(
        "visualize",
        "mae",
        *map(str, digits),
        f"checkpoint={mae}",
        f"output_dir={shown}",
        "overwrite=true",
    )
    command(
        "visualize",
        "attention",
        str(data.example),
        checkpoint,
        f"output_dir={shown}",
        "overwrite=true",
    )
    copy_smaller(next(shown.glob("*normalised.png")), PICTURES / "reconstruction.jpg")
    copy_smaller(next(shown.glob("*gradient_panels.png")), PICTURES / "attention.jpg")
    for folder in (run, work / "ava/run"):
        command("report", str(folder), "overwrite=true")
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        take(page, run / "report/index.html", "Confusions: eval", "report")
        take(page, work / "ava/run/report/index.html", "Videos: eval", "timeline")
        browser.close()


def pretrained(folder: Path) -> Path:
    """The run of a masked autoencoder on drifting digits."""
    data, run = DemoData(folder / "data"), folder / "run"
    pretraining_helps.write_digits(data, folder / "few.csv", SEED, LABELLED)
    pretraining_helps.write_start(folder / "start", SEED)
    pretraining_helps.pretrain(data, folder / "start", run, PRETRAIN_LR, PRETRAIN_STEPS, SEED)
    return run


def take(page: Page, path: Path, heading: str, name: str) -> None:
    """A picture of a report from a heading on."""
    page.goto(path.as_uri())
    place = page.get_by_role("heading", name=heading, exact=True)
    for _ in range(3):  # plots are drawn when they come near the screen
        place.evaluate("element => element.scrollIntoView()")
        page.wait_for_timeout(1000)
    page.screenshot(path=PICTURES / f"{name}.jpg", quality=JPEG_QUALITY, type="jpeg")


def chromium() -> str:
    """The path of an installed Chromium."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        raise SystemExit("Chromium is not installed, for example: apt-get install chromium")
    return found


def copy_smaller(source: Path, target: Path) -> None:
    """A picture as JPEG, of at most `WIDTH` columns."""
    picture = cv2.imread(str(source))
    scale = min(1, WIDTH / picture.shape[1])
    picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    with replacing(target) as part:
        part.write_bytes(cv2.imencode(".jpg", picture, quality)[1].tobytes())


if __name__ == "__main__":
    main()
