"""Classes of video files, for `hiera-video predict` and for Python."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from hiera_video.data.batches import Failure, ViewSample
from hiera_video.data.datasets import EvaluationViews
from hiera_video.data.transforms import Crops
from hiera_video.data.videos.records import VideoRecord, read_class_names
from hiera_video.errors import ConfigError, ModelError, WeightsError, counted
from hiera_video.evaluation.results import top_classes
from hiera_video.evaluation.views import Scorer, average_views, score_views
from hiera_video.models import pretrained
from hiera_video.models.card import Kind, ModelCard
from hiera_video.models.checkpoint import Checkpoint
from hiera_video.models.loading import Model, encoder_of
from hiera_video.models.normalize import Normalize
from hiera_video.models.sources import Source
from hiera_video.runtime.precision import arithmetic
from hiera_video.settings.video import Clips, Decoding, FrameSampling, Views
from hiera_video.video.clips import ClipSampler
from hiera_video.video.open import opener

Classes = list[tuple[str, float]]
"""Names and probabilities, most likely first."""

PAIR = "load_model returns a pair: write model, card = load_model(...)"


class LoadedModel(NamedTuple):
    """A model in evaluation mode and its card: `model, card = load_model(...)`."""

    model: Model
    card: ModelCard

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(f"{PAIR}, and call the model")

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__") and hasattr(self.model, name):
            raise AttributeError(f"{PAIR}, which has {name!r}: model.{name}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def predict(self, path: str | os.PathLike[str], top_k: int = 5) -> Classes:
        """The most likely classes of a video or image, as `hiera-video predict` prints them.

        Clips and views are those of the card; the model runs where its weights are, in the fastest
        precision of that device (`precision=auto`).

        Args:
            path: of one file.
            top_k: number of classes, all if there are fewer.

        Raises:
            WeightsError: the model is not a classifier, or its scores are not finite.
            VideoError: the file cannot be read.
            TypeError, ValueError: `path` is no path, or `top_k` no number of at least 1.
        """
        if not isinstance(path, str | os.PathLike):
            raise TypeError(
                f"path is a {type(path).__name__}: predict takes one path; for frames, give the "
                "model what hiera_video.model_transform(card) makes of them"
            )
        if not isinstance(top_k, int) or top_k < 1:
            raise ValueError(f"top_k is {top_k!r}: expected a whole number of at least 1")
        self.card.require("classifier", "this model")
        clips, views = self.card.clips or Clips(), self.card.views or Views()
        record = VideoRecord(os.path.expanduser(path), (), os.fspath(path))
        dataset = views_of([record], self.model, clips, views, Decoding())
        with record.open(dataset.open_video) as video:
            sample = dataset.sample(video, record, 0)
        device = next(self.model.parameters()).device
        precision = arithmetic("auto", device)
        scorer = Scorer.of(self.model, self.card, device, views.batch_size, precision)
        failures: list[Failure] = []
        found = list(classify(scorer, [sample], dataset, failures, self.card.classes, top_k))
        if failures:
            raise WeightsError(failures[0].message)
        ((_, classes),) = found
        return classes


def load_model(
    source: Source | Checkpoint,
    *,
    kind: Kind | None = None,
    weights_key: str | None = None,
    **changes: Any,
) -> LoadedModel:
    """A trained model and its card.

    Args:
        source: a run, checkpoint or weights folder, a file of weights, published weights by name,
            or hf://OWNER/NAME on the Hugging Face Hub.
        kind: "classifier", "backbone", "autoencoder" or "detector": what is needed. "backbone"
            takes weights of any kind: a classifier as it is, and the encoder of the others. None:
            whatever the weights are.
        weights_key: of several states in a file, the one to take, such as `model_ema`. None: the
            plain one, with a warning that names the others.
        changes: arguments of `create_model` (or `create_autoencoder`, `create_detector`), such as
            `num_frames`; `decoder_heads` must be given for published autoencoders.

    Raises:
        ModelError: changes that do not fit.
        WeightsError: the weights cannot be read, or are of another kind.
        FetchError: they cannot be fetched.
    """
    loaded = pretrained.load_model(source, kind=kind, weights_key=weights_key, **changes)
    return LoadedModel(*loaded)


def with_class_names(card: ModelCard, source: str | None) -> ModelCard:
    """The card with the class names of the file that `data.class_names` names, if any.

    Raises:
        AnnotationError: the file cannot be read.
        ConfigError: it has another number of names, or others than the card.
    """
    if source is None:
        return card
    names = read_class_names(source)
    if len(names) != card.num_classes:
        raise ConfigError(
            f"data.class_names is {source}, which has {counted(len(names), 'name')}: the "
            f"checkpoint has {counted(len(card.classes), 'class')}"
        )
    for number, (theirs, stated) in enumerate(zip(names, card.class_names, strict=False)):
        if theirs != stated:
            raise ConfigError(
                f"data.class_names is {source}, where class {number} is {theirs!r}: it is "
                f"{stated!r} in the checkpoint; leave data.class_names out"
            )
    return card.model_copy(update={"class_names": names})


def model_transform(
    card: ModelCard,
) -> Callable[[UInt8[np.ndarray, "T H W 3"]], Float[Tensor, "S C T h w"]]:
    """What evaluation does with the frames of a clip: resizing, crops and normalisation.

    Returns:
        From decoded frames of any size to the input of the model, one clip for each crop of
        `card.views` (one centre crop where the card has no views).
    """
    if not isinstance(card, ModelCard):
        raise ModelError(f"the card is a {type(card).__name__}: model, card = load_model(...)")
    _, height, width = card.architecture["input_size"]
    views = card.views or Views(num_crops=1)
    crops = Crops((height, width), views.num_crops, views.short_side)
    normalize = Normalize(card.mean, card.std)

    def transform(frames: UInt8[np.ndarray, "T H W 3"]) -> Float[Tensor, "S C T h w"]:
        return normalize(torch.from_numpy(crops(frames)))

    return transform


def views_of(
    records: Sequence[VideoRecord],
    model: Any,
    clips: FrameSampling,
    views: Views,
    decoding: Decoding,
) -> EvaluationViews:
    """The views of videos for a model."""
    num_frames, height, width = encoder_of(model).input_size
    return EvaluationViews(
        records,
        ClipSampler.of(clips, num_frames),
        crop_size=(height, width),
        views=views,
        open_video=opener(decoding, num_frames),
    )


def classify(
    scorer: Scorer,
    samples: Iterable[ViewSample],
    views: EvaluationViews,
    failures: list[Failure],
    names: Sequence[str],
    top_k: int,
) -> Iterator[tuple[ViewSample, Classes]]:
    """Yields each sample with its most likely classes: the mean of the probabilities of its views.

    Args:
        views: the data set of the samples.
        failures: gets the videos whose scores are not finite, which are left out.
        names: of the classes, in id order.
    """
    scored = score_views(scorer, samples, views.crop_size)
    for sample, scores in scorer.finite(scored, views.records, failures):
        best = top_classes(average_views(scores), top_k)
        yield sample, [(names[c], probability) for c, probability in best]
