"""Settings of reading: the decoder, and which frames and crops of a video are taken."""

from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le
from pydantic import AfterValidator

from hiera_video.settings.base import Allowed, Count, Length, Natural, Path, Positive, Settings

Backend = Literal["pyav", "decord", "torchcodec", "torchcodec-cuda"]
Spacing = Literal["linspace", "strided"]
EndPolicy = Literal["repeat_last", "wrap", "error"]
LastWindow = Literal["pad", "drop", "shift"]
ClipRule = Literal["offset", "interval"]


def _one_or_three(number: int) -> int:
    if number not in (1, 3):
        raise ValueError("it is neither 1 nor 3")
    return number


NumClips = Annotated[int, Ge(1), Le(256)]
NumCrops = Annotated[int, AfterValidator(_one_or_three), Allowed("1 or 3")]


class Decoding(Settings):
    backend: Backend = "pyav"
    """Library that decodes. torchcodec-cuda: on the GPU, with colours within 2 levels of 255."""
    deadline_sec: Positive = 60.0
    """Longest time that reading one video may take, seconds."""
    max_frame_pixels: Count = 2**26
    """Largest frame that is read, pixels; a side may have twice the square root of this number."""
    max_read_gib: Positive = 4.0
    """Most memory that the frames of one read may take, GiB. A read is of all clips of a video."""
    frames_fps: Positive | None = None
    """Frames per second of folders of numbered frames, each of which is a video, and of pages of
    TIFF files. Null: folders are refused, and 25 pages are a second."""
    max_gap_sec: Positive | None = None
    """Longest time between two frames that counts, seconds: longer gaps, in which a camera was off,
    are shortened to it. Null: gaps count as long as the file states."""
    num_workers: Natural | None = None
    """Decoding processes for each process. Null: as many as its share of the CPU cores; 2 with
    backend=torchcodec-cuda."""


class Listed(Decoding):
    """Decoding of the files of lists and folders."""

    check: Literal["exists", "decode"] = "exists"
    """At the start, and in a dry run: see whether each listed file is there, or decode all of it,
    which takes as long as reading every frame once."""


class Reading(Listed):
    root: Path | None = None
    """Folder that relative paths in lists start from. Null: the folder of the list."""
    split: str | None = None
    """Rows of a list to use, by its column `split`, e.g. train. Null: it has one split or no such
    column."""
    stills: bool = False
    """Let a model of several frames take pictures, as clips in which nothing moves."""


class FrameSampling(Settings):
    """The rate at which the frames of a clip are sampled."""

    sampling_rate: Annotated[int, Ge(1), Le(10_000)] = 4
    """Distance between sampled frames, frames (of a video of target_fps where that is set)."""
    target_fps: Annotated[float, Ge(0.001), Le(10_000)] | None = None
    """Sample all videos as if they had this rate, frames per second. Null: their own frames."""


class Clips(FrameSampling):
    """Which frames of a video make a clip."""

    sampling: Literal["clip", "segments"] = "clip"
    """Frames at a fixed distance (Kinetics), or one from each of num_frames equal parts (SSv2)."""
    spacing: Spacing = "linspace"
    """Spread over num_frames * sampling_rate frames, ends included (SlowFast), or every n-th
    (mmaction2)."""
    end_policy: EndPolicy = "repeat_last"
    """What fills a clip past the end of a video that is shorter than the clip."""


class Views(Settings):
    """Multi-view evaluation."""

    num_clips: NumClips = 5
    """Temporal clips of a video."""
    num_crops: NumCrops = 3
    """Spatial crops of a clip: 1 (centre) or 3 (along the longer side)."""
    clip_rule: ClipRule = "offset"
    """The last clip ends with the video (SlowFast's offset sampling), or clips start at multiples
    of an equal share of the video."""
    short_side: Length | None = None
    """Short side after resizing, pixels. Null: the crop size for 3 crops, 256/224 of it for 1."""
    batch_size: Annotated[int, Ge(1), Le(4096)] = 16
    """Views in one forward pass; views of several videos share it."""


class Windowing(Settings):
    """Windows of feature extraction."""

    own_keys: ClassVar[dict[str, tuple[str, ...]]] = {  # that only one kind uses
        "dense": ("clip_stride", "clip_stride_sec", "last_window"),
        "views": ("num_clips", "clip_rule"),
    }

    kind: Literal["dense", "views"] = "dense"
    """Windows over the whole video, or the clips of multi-view evaluation."""
    clip_stride: Count | None = None
    """For dense windows: distance between the starts of two windows, source frames (frames at
    clips.target_fps where that is set). Null: the length of a clip, side by side."""
    clip_stride_sec: Positive | None = None
    """For dense windows: the same distance in seconds, instead."""
    last_window: LastWindow = "pad"
    """For dense windows: where frames remain at the end, a window that repeats its last frame, no
    window, or a window that ends with the video. A video shorter than a clip has one window, by
    clips.end_policy."""
    num_clips: NumClips = 5
    """For views: temporal clips of a video."""
    clip_rule: ClipRule = "offset"
    """For views: the last clip ends with the video, or clips start at even shares."""
    num_crops: NumCrops = 1
    """Spatial crops of a window: 1 (centre) or 3 (along the longer side)."""
    short_side: Length | None = None
    """Short side after resizing, pixels. Null: the crop size for 3 crops, 256/224 of it for 1."""

    def check_rules(self) -> None:
        self.require(
            self.clip_stride is None or self.clip_stride_sec is None,
            "clip_stride_sec",
            "null beside clip_stride: only one of the two",
        )
        for key in self.own_keys["views" if self.kind == "dense" else "dense"]:
            default = type(self).model_fields[key].default
            self.require(
                getattr(self, key) == default,
                key,
                f"{'null' if default is None else default} with kind={self.kind}, which does not "
                "use it",
            )


def check_segments(settings: Settings, clips: Clips, key: str, num_clips: int) -> None:
    """Segment sampling knows one or two clips of a video (SlowFast's two test clips of SSv2)."""
    settings.require(
        clips.sampling == "clip" or num_clips in (1, 2), key, "1 or 2 with clips.sampling=segments"
    )


class MultiView(Settings):
    """Clips and views of commands that evaluate whole videos."""

    clips: Clips = Clips()
    views: Views = Views()

    def check_rules(self) -> None:
        check_segments(self, self.clips, "views.num_clips", self.views.num_clips)
