"""The card of a set of weights: what they are, what they expect, what they were trained with.

`config.json` in a weights folder is a card. Published weights have one too
(`hiera_video.models.sources`). Reading a card needs neither torch nor the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticSerializationError

from hiera_video.errors import WeightsError
from hiera_video.models.variants import (
    Statistics,
    as_tuple,
    check_known,
    input_statistics,
    variant_name,
)
from hiera_video.settings.base import Natural
from hiera_video.settings.model import Masking
from hiera_video.settings.video import Clips, FrameSampling, Views

Kind = Literal["classifier", "backbone", "autoencoder", "detector"]

FORMAT = "hiera_video"  # in the config.json of a weights folder
REQUIRED = ("architecture", "num_classes")
ARCHITECTURE_NEEDS = ("input_size", "embed_dim", "stages", "patch_kernel", "patch_stride")
DERIVED = ("name", "format", "num_frames")  # written for readers, and not read

A_KIND: dict[Kind, str] = {
    "classifier": "a classifier",
    "backbone": "a backbone without a classifier",
    "autoencoder": "a masked autoencoder",
    "detector": "an action detector",
}
EXAMPLES: dict[Kind, str] = {
    "classifier": "a run of `hiera-video finetune`, or published weights such as "
    "hiera_base_16x224.mae_k400_ft_k400",
    "autoencoder": "a run of `hiera-video pretrain`, or published weights such as "
    "hiera_base_16x224.mae_k400",
    "detector": "a run of `hiera-video detect train`",
}


class ModelCard(BaseModel):
    """What a set of weights is.

    Args:
        architecture: keyword arguments of `Hiera`, but `num_classes`.
        num_classes: outputs of the classifier, 0 for none. None: an autoencoder or a detector.
        autoencoder: keyword arguments of `MaskedAutoencoderHiera`, as far as they are known.
        detector: keyword arguments of `ActionDetector`.
        class_names: in id order; empty where they are not known.
        mean, std: of the colour channels, by which input is normalised, for values in 0..1.
            Default: those of the published models of this kind.
        multi_label: a video may have several classes.
        clips, views, masking: the settings of these names that the model was trained with, or is to
            be evaluated with. None: not known.
        label_map: actions of a detector by id, from 1.
        groups: group of each action, by its id, where the label map has groups.
        license, url: of the published file that the weights come from.
        notes: other entries of a config.json, kept as they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: dict[str, Any]
    num_classes: Natural | None
    autoencoder: dict[str, Any] | None = None
    detector: dict[str, Any] | None = None
    class_names: tuple[str, ...] = ()
    mean: Statistics = Field(default=(), validate_default=True)
    std: Statistics = Field(default=(), validate_default=True)
    multi_label: bool = False
    clips: FrameSampling | Clips | None = None
    views: Views | None = None
    masking: Masking | None = None
    label_map: dict[int, str] = {}
    groups: dict[int, str] = {}
    license: str | None = None
    url: str | None = None
    notes: dict[str, Any] = {}

    @field_validator("architecture")
    @classmethod
    def _check_architecture(cls, value: dict[str, Any]) -> dict[str, Any]:
        if missing := [key for key in ARCHITECTURE_NEEDS if key not in value]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        return {key: as_tuple(argument) for key, argument in value.items()}

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _fill_statistics(cls, value: Any, info: Any) -> Any:
        if value or "architecture" not in info.data:
            return value
        mean, std = input_statistics(info.data["architecture"])
        return mean if info.field_name == "mean" else std

    @model_validator(mode="after")
    def _check_class_names(self) -> ModelCard:
        names, classes = len(self.class_names), self.num_classes or 0
        if names not in (0, classes):
            raise ValueError(f"there are {names} class_names for {classes} classes")
        return self

    @property
    def kind(self) -> Kind:
        """What model the weights are for."""
        if self.autoencoder is not None:
            return "autoencoder"
        if self.detector is not None:
            return "detector"
        return "classifier" if self.num_classes else "backbone"

    @property
    def name(self) -> str:
        """The variant, or the nearest one."""
        return variant_name(self.architecture)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in id order; the ids, where no names are known."""
        return self.class_names or tuple(map(str, range(self.num_classes or 0)))

    @property
    def actions(self) -> dict[int, str]:
        """Names of a detector's actions by id; the ids, where no names are known."""
        number = (self.detector or {}).get("num_classes", 0)
        return self.label_map or {id: str(id) for id in range(1, number + 1)}

    def without_classes(self) -> ModelCard:
        """The card after the classifier was replaced by one for unknown classes."""
        return self.model_copy(
            update={"class_names": (), "multi_label": False, "label_map": {}, "groups": {}}
        )

    def require(self, kind: Kind | None, source: object) -> None:
        """Raises WeightsError if the weights of `source` do not serve as a model of that kind.

        All weights serve as a backbone.
        """
        if kind in (None, "backbone", self.kind):
            return
        check_known(kind, [*A_KIND, "backbone"], "Kinds of models")
        advice = ""
        if self.kind == "autoencoder" and kind == "classifier":
            advice = f". To make one of it, fine-tune it with model.init={source}"
        elif self.kind == "detector":
            advice = ". The commands `hiera-video detect ...` take it"
        raise WeightsError(
            f"{source} is {A_KIND[self.kind]}; needed is {A_KIND[kind]}: {EXAMPLES[kind]}{advice}"
        )

    def entries(self) -> dict[str, Any]:
        """The fields that the model itself does not show, as far as they are set."""
        shown = {"architecture", "num_classes", "autoencoder", "detector"}
        values = {key: getattr(self, key) for key in type(self).model_fields if key not in shown}
        return {key: value for key, value in values.items() if value}

    def to_json(self) -> dict[str, Any]:
        """The content of config.json; a WeightsError if an entry is not JSON."""
        try:
            fields = self.model_dump(mode="json")
        except PydanticSerializationError as error:
            raise WeightsError(f"config.json cannot hold the card: {error}") from None
        notes = fields.pop("notes")
        fields = {key: value for key, value in fields.items() if value not in (None, {})}
        if self.kind != "classifier":
            del fields["multi_label"]
        start = {
            "name": self.name,
            "format": FORMAT,
            "num_frames": self.architecture["input_size"][0],
            "num_classes": self.num_classes,
        }
        return {**start, **fields, **notes}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], source: object) -> ModelCard:
        """The card of a config.json, of this version or of an earlier one.

        Args:
            source: names the file in errors.

        Raises:
            WeightsError: an entry is missing or wrong; names the file and the entry.
        """
        if missing := [key for key in REQUIRED if key not in content]:
            raise WeightsError(f"{source} lacks {', '.join(missing)}")
        known = cls.model_fields.keys() - {"notes"}
        fields = {key: content[key] for key in content if key in known}
        notes = {key: content[key] for key in content if key not in known and key not in DERIVED}
        return cls.checked({**fields, "notes": notes}, source)

    @classmethod
    def checked(cls, fields: Mapping[str, Any], source: object) -> ModelCard:
        """The card with these fields; a WeightsError that names `source` if one is wrong."""
        try:
            return cls(**fields)
        except ValidationError as error:
            # For `clips`, pydantic names each class that it tried, the more general one last.
            mistake = error.errors()[-1]
            keys = [part for part in map(str, mistake["loc"]) if part == part.lower()]
            key = ".".join(keys)
            message = mistake["msg"].removeprefix("Value error, ")
            raise WeightsError(f"{source}: {key + ': ' if key else ''}{message}") from None
