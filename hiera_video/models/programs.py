"""Models for other programs: torch.export and ONNX files, each compared with the model.

A classifier is one part; an action detector is two, its backbone, which needs to see a clip but
once, and its head, which takes any number of boxes. What counts along the first axis of an input,
clips or boxes, is free in the files.

Exported are float32 weights on a CPU, in evaluation and without gradients. On that way attention is
torch's own: no operator in the files is ours.
"""

import importlib.util
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hiera_video.errors import OTHER_WEIGHTS, MissingLibrary, WeightsError
from hiera_video.models.detector import ActionDetector
from hiera_video.models.hiera import Hiera
from hiera_video.models.loading import encoder_of

Format = Literal["pt2", "onnx"]

TOLERANCE = 1e-4
TRACED_SIZE = 2  # sizes 0 and 1 of an axis would be taken as fixed
COMPARED_SIZES = (1, 3)
NEEDED: dict[Format, tuple[str, ...]] = {"pt2": (), "onnx": ("onnx", "onnxruntime", "onnxscript")}


@dataclass(frozen=True)
class Part:
    """What becomes one file of each format."""

    name: str  # of the file
    module: nn.Module  # with tensors as arguments, and one as its result
    draw: Callable[[int], tuple[Tensor, ...]]  # random arguments for so many clips
    inputs: Mapping[str, str]  # name of each argument, and what its first axis counts
    output: str  # name of the result


@dataclass(frozen=True)
class Comparison:
    """Outputs of a file beside those of the model, over `COMPARED_SIZES`."""

    path: Path
    difference: float  # the largest, absolute
    largest: float  # output of the model, absolute

    @property
    def agrees(self) -> bool:
        """Within 1e-4; of the largest output, where that is below 1, as of an untrained model."""
        return self.difference <= TOLERANCE * min(1.0, self.largest)

    def __str__(self) -> str:
        return (
            f"{self.path.name}: differs by {self.difference:.1e} at most, in outputs up to "
            f"{self.largest:.3g}"
        )


class Backbone(nn.Module):
    """The part of a detector from clips to feature maps."""

    def __init__(self, detector: ActionDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, clips: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D h w"]:
        return self.detector.feature_map(clips)


class BoxHead(nn.Module):
    """The part of a detector from feature maps and boxes to logits."""

    def __init__(self, detector: ActionDetector) -> None:
        super().__init__()
        self.roi_features, self.roi_head = detector.roi_features, detector.roi_head

    def forward(
        self,
        maps: Float[Tensor, "B D h w"],
        boxes: Float[Tensor, "R 4"],
        clip_of_box: Int[Tensor, " R"],
    ) -> Float[Tensor, "R L"]:
        return self.roi_head(self.roi_features(maps, boxes, clip_of_box))


def parts_of(model: Hiera | ActionDetector) -> list[Part]:
    """The parts of a model, which is set to evaluation."""
    model.eval()
    encoder = encoder_of(model)
    generator = torch.Generator().manual_seed(0)

    def clips(n: int) -> tuple[Tensor, ...]:
        return (torch.randn(n, encoder.in_chans, *encoder.input_size, generator=generator),)

    if isinstance(model, Hiera):
        output = "logits" if model.num_classes else "features"
        return [Part("model", model, clips, {"clips": "batch"}, output)]
    backbone, head = Backbone(model).eval(), BoxHead(model).eval()

    @torch.no_grad()
    def maps_and_boxes(n: int) -> tuple[Tensor, ...]:
        corners = torch.rand(2 * n + 1, 2, 2, generator=generator).sort(dim=1).values.flatten(1)
        return backbone(*clips(n)), corners, torch.arange(2 * n + 1) % n

    inputs = {"maps": "batch", "boxes": "boxes", "clip_of_box": "boxes"}
    return [
        Part("backbone", backbone, clips, {"clips": "batch"}, "maps"),
        Part("head", head, maps_and_boxes, inputs, "logits"),
    ]


def check_installed(format: Format) -> None:
    """Raises MissingLibrary, with what to install, unless all that the format needs is there."""
    missing = [name for name in NEEDED[format] if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingLibrary(
            f"{format} files need {', '.join(missing)}: pip install 'hiera-video[{format}]'"
        )


@torch.no_grad()
def export(part: Part, format: Format, path: Path) -> Comparison:
    """Writes `path`, and runs what was written beside the model.

    ONNX files above 1.5 GB have their weights in a second file, `path` with .data behind it.

    Raises:
        WeightsError: the outputs of the model itself are not finite.
    """
    arguments = part.draw(TRACED_SIZE)
    dims = {name: torch.export.Dim(name) for name in part.inputs.values()}
    free_axes = tuple({0: dims[name]} for name in part.inputs.values())
    with warnings.catch_warnings():
        # That two inputs share the axis "boxes", and of deprecations inside of the exporters.
        warnings.simplefilter("ignore")
        if format == "pt2":
            exported = torch.export.export(part.module, arguments, dynamic_shapes=free_axes)
            content = io.BytesIO()  # torch aborts the process if it cannot write to a file
            torch.export.save(exported, content)
            path.write_bytes(content.getbuffer())
            run: Callable[..., Tensor] = torch.export.load(path).module()
        else:
            program = torch.onnx.export(
                part.module,
                arguments,
                dynamic_shapes=free_axes,
                input_names=list(part.inputs),
                output_names=[part.output],
                dynamo=True,
                verbose=False,
            )
            assert program is not None  # it is with dynamo=False only
            program.save(path)
            run = _load_onnx(path)
    compared = []
    for size in COMPARED_SIZES:
        arguments = part.draw(size)
        expected = part.module(*arguments)
        if not expected.isfinite().all():
            raise WeightsError(
                f"the outputs of {part.name} are not finite, with which no file can be compared; "
                f"use {OTHER_WEIGHTS}"
            )
        difference = run(*arguments) - expected
        compared.append(torch.stack([difference.abs().max(), expected.abs().max()]))
    return Comparison(path, *torch.stack(compared).amax(dim=0).tolist())


def _load_onnx(path: Path) -> Callable[..., Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(*arguments: Tensor) -> Tensor:
        feed = dict(zip(names, (np.asarray(a) for a in arguments), strict=True))
        return torch.from_numpy(session.run(None, feed)[0])

    return run
