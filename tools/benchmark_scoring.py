"""Scoring a validation of the size of AVA's, compared with the official program.

    python tools/benchmark_scoring.py [--official ActivityNet/Evaluation] [--trials 3]

Generates csv files of that size (64 videos, 897 key frames each, about 290,000 rows of ground truth
and 900,000 detections) and times scoring from files to per-class AP in the activitynet protocol.
Each trial of each program is a separate process; the time covers reading and scoring, not the start
of Python and imports. With the official code, whose mAP must be the same, the ratio is printed too.
Three names that numpy has removed are defined again for it.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

NUM_VIDEOS, SECONDS = 64, range(902, 1799)
NUM_TRUTH, NUM_DETECTIONS = 290_000, 900_000
NUM_CLASSES = 60
TARGET = 30

OURS = """
import sys, time
import pyarrow.csv
from hiera_video.data.boxes.files import read_boxes
from hiera_video.data.boxes.table import read_label_map
from hiera_video.evaluation.ava import frame_ap
from hiera_video.files import json_text
begin = time.perf_counter()
labels = read_label_map(sys.argv[3])
truth = read_boxes("ground truth", sys.argv[1], labels, strict=False)
detections = read_boxes("detections", sys.argv[2], labels)
read = time.perf_counter()
result = frame_ap(truth, detections, classes=list(labels.names), protocol="activitynet")
end = time.perf_counter()
ap = {labels.names[c]: v for c, v in zip(result.classes.tolist(), result.ap.tolist())}
print(json_text({"seconds": end - begin, "read": read - begin, "ap": ap}))
"""

OFFICIAL = """
import sys, time
import numpy as np
from hiera_video.files import json_text
np.bool, np.float, np.NAN = bool, float, np.nan
sys.path[:0] = [sys.argv[4], sys.argv[4] + "/ava"]
import get_ava_performance as official
metrics = {}
official.pprint.pprint = lambda results, indent: metrics.update(results)
begin = time.perf_counter()
official.run_evaluation(open(sys.argv[3]), open(sys.argv[1]), open(sys.argv[2]))
seconds = time.perf_counter() - begin
prefix = "PascalBoxes_PerformanceByCategory/AP@0.5IOU/"
ap = {k[len(prefix):]: float(v) for k, v in metrics.items() if k.startswith(prefix)}
print(json_text({"seconds": seconds, "read": 0, "ap": ap}))
"""


def generate(folder: Path) -> list[str]:
    """Ground truth, detections and label map; a detection is a slightly moved ground-truth box."""
    rng = np.random.default_rng(0)
    num_frames = NUM_VIDEOS * len(SECONDS)
    # People in a frame, then actions of a person: about 2 x 2.5.
    people_frame = np.sort(rng.integers(num_frames, size=int(NUM_TRUTH / 2.5)))
    corner, size = (
        rng.uniform(0, 0.6, (len(people_frame), 2)),
        rng.uniform(0.1, 0.4, (len(people_frame), 2)),
    )
    people = np.hstack([corner, corner + size])
    weights = 1 / np.arange(1, NUM_CLASSES + 1)  # of actions in ground truth: few are frequent
    weights /= weights.sum()

    def write(name: str, num_rows: int, scored: bool) -> str:
        person = rng.integers(len(people), size=int(num_rows * 1.2))
        action = rng.choice(NUM_CLASSES, len(person), p=None if scored else weights) + 1
        pairs = np.unique(person * (NUM_CLASSES + 1) + action)  # an action of a person once
        pairs = np.sort(rng.permutation(pairs)[:num_rows])
        person, action = pairs // (NUM_CLASSES + 1), pairs % (NUM_CLASSES + 1)
        moved = rng.normal(scale=0.03, size=(len(people), 4)) if scored else 0
        boxes = np.clip(people + moved, 0, 1)[person]
        score = rng.beta(0.5, 2, len(person))
        with open(folder / name, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            for p, box, a, s in zip(person, boxes.tolist(), action, score, strict=True):
                video, second = divmod(int(people_frame[p]), len(SECONDS))
                last = f"{s:.6f}" if scored else str(int(p))
                stamp = f"{SECONDS[second]:04d}"
                writer.writerow([f"video{video:05d}", stamp, *(f"{x:.3f}" for x in box), a, last])
        return str(folder / name)

    labels = folder / "labels.pbtxt"
    items = [f'item {{\n  name: "class {c}"\n  id: {c}\n}}\n' for c in range(1, NUM_CLASSES + 1)]
    labels.write_text("".join(items))
    truth = write("ground_truth.csv", NUM_TRUTH, scored=False)
    return [truth, write("detections.csv", NUM_DETECTIONS, scored=True), str(labels)]


def timed(program: str, arguments: list[str]) -> dict:
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--official", help="the folder Evaluation of activitynet/ActivityNet")
    parser.add_argument("--trials", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = generate(Path(folder))
        for name in files[:2]:
            with open(name) as file:
                print(f"{Path(name).name}: {sum(1 for _ in file)} rows")
        ours = [timed(OURS, files) for _ in range(arguments.trials)]
        seconds = statistics.median(trial["seconds"] for trial in ours)
        read = statistics.median(trial["read"] for trial in ours)
        print(f"ours: {seconds:.2f} s, of which reading {read:.2f} s")
        if arguments.official:
            official = timed(OFFICIAL, [*files, arguments.official])
            ratio = official["seconds"] / seconds
            print(f"official: {official['seconds']:.1f} s, {ratio:.1f}x (target {TARGET}x)")
            apart = max(abs(official["ap"][name] - ap) for name, ap in ours[0]["ap"].items())
            print(f"largest difference of an AP: {apart:.1e}")


if __name__ == "__main__":
    main()
