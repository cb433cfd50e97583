"""The card of a set of weights: what they are, what they expect, what they were trained with.

`config.json` in a weights folder is a card. Published weights have one too
(`hiera_video.models.sources`). Reading a card needs neither torch nor the weights.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import (
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import core_schema

from hiera_video.errors import WeightsError, counted, listing
from hiera_video.models.variants import (
    as_tuple,
    check_known,
    input_statistics,
    variant_name,
)
from hiera_video.settings.base import Checked, Settings, shown
from hiera_video.settings.model import (
    MAX_CLASSES,
    Bins,
    Decoder,
    FullArchitecture,
    Masking,
    SegmenterHeads,
)
from hiera_video.settings.video import Clips, FrameSampling, Views

Kind = Literal["classifier", "backbone", "autoencoder", "detector", "segmenter"]

AROUND: tuple[Kind, ...] = ("autoencoder", "detector", "segmenter")  # what has a Hiera inside
FORMAT = "hiera_video"  # in the config.json of a weights folder
REQUIRED = ("architecture", "num_classes")
ARCHITECTURE_NEEDS = ("input_size", "embed_dim", "stages", "patch_kernel", "patch_stride")
ID = re.compile("0|-?[1-9][0-9]{0,18}")  # COCO's may be any whole number of 64 bits
DERIVED = ("name", "format", "num_frames")  # written for readers, and not read

A_KIND: dict[Kind, str] = {
    "classifier": "a classifier",
    "backbone": "a backbone without a classifier",
    "autoencoder": "a masked autoencoder",
    "detector": "an action detector",
    "segmenter": "an instance segmenter",
}
EXAMPLES: dict[Kind, str] = {
    "classifier": "a run of `hiera-video finetune`, or published weights such as "
    "hiera_base_16x224.mae_k400_ft_k400",
    "autoencoder": "a run of `hiera-video pretrain`, or published weights such as "
    "hiera_base_16x224.mae_k400",
    "detector": "a run of `hiera-video detect train`",
    "segmenter": "a run of `hiera-video instances train`",
}


ALLOWED = {  # in words, by the beginning of pydantic's name of a mistake
    "greater_than_equal": "{ge} or more",
    "greater_than": "above {gt}",
    "less_than_equal": "{le} or less",
    "less_than": "below {lt}",
    "too_long": "of at most {max_length} entries",
    "too_short": "of at least {min_length} entries",
    "literal_error": "{expected}",
    "finite_number": "a finite number",
    "int_": "a whole number",
    "float_": "a number",
    "string_": "text",
    "bool_": "true or false",
    "tuple_": "a list",
    "dict_": "keys with values",
    "model_": "keys with values",
}
Mean = Annotated[float, Ge(0), Le(1)]
Deviation = Annotated[float, Ge(1e-6), Le(1)]


class DetectorArguments(Settings):
    num_classes: Annotated[int, Ge(1), Le(MAX_CLASSES)]
    """Actions."""
    roi_resolution: Bins = 7
    """Bins of RoIAlign along each side of a box."""


class SegmenterArguments(SegmenterHeads):
    num_classes: Annotated[int, Ge(1), Le(MAX_CLASSES)]
    """Classes of objects."""


@dataclass(frozen=True)
class ArgumentsOf:
    """Annotates a dict of the keyword arguments that are given, of those that `settings` has."""

    settings: type[Settings]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(
            self.given,
            handler.generate_schema(self.settings),
            serialization=core_schema.plain_serializer_function_ser_schema(dict),
        )

    def given(self, found: Settings) -> dict[str, Any]:
        names = [name for name in type(found).model_fields if name in found.model_fields_set]
        if nulls := [name for name in names if getattr(found, name) is None]:
            raise ValueError(f"{nulls[0]} is null")
        return {name: getattr(found, name) for name in names}


class ModelCard(Checked):
    """What a set of weights is.

    Attributes:
        architecture: keyword arguments of `Hiera`, but `num_classes`.
        num_classes: outputs of the classifier, 0 for none. None: there is something else around
            the backbone.
        autoencoder: keyword arguments of `MaskedAutoencoderHiera`, as far as they are known.
        detector: keyword arguments of `ActionDetector`.
        segmenter: keyword arguments of `InstanceSegmenter`.
        class_names: in id order; empty where they are not known.
        mean: of each colour channel, by which input is normalised, for values in 0..1. Default:
            that of the published models of this kind.
        std: standard deviation of each colour channel, likewise.
        multi_label: a video may have several classes.
        clips: the settings of this name that the model was trained with. None: not known.
        views: the settings of this name that the model is to be evaluated with. None: not known.
        masking: the settings of this name that the model was trained with. None: not known.
        label_map: actions of a detector by id, from 1; classes of a segmenter, by COCO's id.
        groups: group of each action, by its id, where the label map has groups.
        license: of the published file that the weights come from.
        url: of this file.
        notes: other entries of a config.json, kept as they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    architecture: Annotated[dict[str, Any], ArgumentsOf(FullArchitecture)]
    num_classes: Annotated[int, Ge(0), Le(MAX_CLASSES)] | None
    autoencoder: Annotated[dict[str, Any], ArgumentsOf(Decoder)] | None = None
    detector: Annotated[dict[str, Any], ArgumentsOf(DetectorArguments)] | None = None
    segmenter: Annotated[dict[str, Any], ArgumentsOf(SegmenterArguments)] | None = None
    class_names: tuple[str, ...] = ()
    mean: tuple[Mean, Mean, Mean] = Field(default=None, validate_default=True)
    std: tuple[Deviation, Deviation, Deviation] = Field(default=None, validate_default=True)
    multi_label: bool = False
    clips: FrameSampling | Clips | None = None
    views: Views | None = None
    masking: Masking | None = None
    label_map: dict[int, str] = Field(default={})
    groups: dict[int, str] = Field(default={})
    license: str | None = None
    url: str | None = None
    notes: dict[str, Any] = Field(default={})

    @classmethod
    def refusal(cls, error: ValidationError, values: Mapping[str, Any]) -> WeightsError:
        return WeightsError(f"ModelCard: {first_mistake(error)}")

    @field_validator("architecture")
    @classmethod
    def _check_architecture(cls, value: dict[str, Any]) -> dict[str, Any]:
        if missing := [key for key in ARCHITECTURE_NEEDS if key not in value]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        return value

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _fill_statistics(cls, value: Any, info: Any) -> Any:
        if value is not None or "architecture" not in info.data:
            return value
        mean, std = input_statistics(info.data["architecture"])
        return mean if info.field_name == "mean" else std

    @field_validator("label_map", "groups", mode="before")
    @classmethod
    def _read_ids(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            int(key) if isinstance(key, str) and ID.fullmatch(key) else key: name
            for key, name in value.items()
        }

    @model_validator(mode="after")
    def _check_kind(self) -> ModelCard:
        around = [name for name in AROUND if getattr(self, name) is not None]
        if len(around) > 1:
            raise ValueError(f"it has both an {around[0]} and a {around[1]}")
        if (self.num_classes is None) != bool(around):
            without = f"without an {', '.join(AROUND[:-1])} or {AROUND[-1]}"
            what = f"of {A_KIND[around[0]]}" if around else without
            needed = "null" if around else "a whole number"
            raise ValueError(f"num_classes is {self.num_classes}: {what}, expected {needed}")
        return self

    @field_validator("notes")
    @classmethod
    def _check_notes(cls, value: dict[str, Any]) -> dict[str, Any]:
        if own := sorted(value.keys() & ({*cls.model_fields, *DERIVED} - {"notes"})):
            raise ValueError(f"it has {own[0]}, which config.json states itself: rename the entry")
        return value

    @model_validator(mode="after")
    def _check_names(self) -> ModelCard:
        names, classes = len(self.class_names), self.num_classes or 0
        if names not in (0, classes):
            raise ValueError(f"there are {names} class_names for {counted(classes, 'class')}")
        if repeated := [name for name, n in Counter(self.class_names).items() if n > 1]:
            raise ValueError(f"class_names has {listing(repeated)} more than once")
        if self.segmenter is not None:
            objects = self.segmenter["num_classes"]
            if (names := len(self.label_map)) not in (0, objects):
                raise ValueError(f"label_map has {names} entries for {counted(objects, 'class')}")
            return self
        actions = (self.detector or {}).get("num_classes", 0)
        for key in ("label_map", "groups"):
            if unknown := [id for id in getattr(self, key) if not 1 <= id <= actions]:
                raise ValueError(
                    f"{key} has {unknown[0]}: the detector has {counted(actions, 'action')}"
                )
        return self

    @property
    def kind(self) -> Kind:
        """What model the weights are for."""
        for kind in AROUND:
            if getattr(self, kind) is not None:
                return kind
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
        """Names by id of what a detector or segmenter finds; the ids, where none are known."""
        number = (self.detector or self.segmenter or {}).get("num_classes", 0)
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
        check_known(kind, A_KIND, "Kinds of models")
        advice = ""
        if self.kind == "autoencoder" and kind == "classifier":
            advice = f". Fine-tune it: `hiera-video finetune ... model.init={source}`"
        elif self.kind == "detector":
            advice = ". The commands `hiera-video detect ...` take it"
        elif self.kind == "segmenter":
            advice = ". The commands `hiera-video instances ...` take it"
        raise WeightsError(
            f"{source} is {A_KIND[self.kind]}; expected {A_KIND[kind]}: {EXAMPLES[kind]}{advice}"
        )

    def entries(self) -> dict[str, Any]:
        """The fields that the model itself does not show, as far as they are set."""
        shown = {"architecture", "num_classes", *AROUND}
        values = {key: getattr(self, key) for key in type(self).model_fields if key not in shown}
        return {key: value for key, value in values.items() if value}

    def to_json(self) -> dict[str, Any]:
        """The content of config.json; a WeightsError if an entry is not JSON."""
        try:
            fields = self.model_dump(mode="json")
        except ValueError as error:  # of pydantic: the type of an entry, or its depth
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
        if content.get("format") != FORMAT:
            raise WeightsError(f"{source}: format is missing or another one: expected {FORMAT!r}")
        if missing := [key for key in REQUIRED if key not in content]:
            raise WeightsError(f"{source} lacks {', '.join(missing)}")
        known = cls.model_fields.keys() - {"notes"}
        fields = {key: _as_tuples(content[key]) for key in content if key in known}
        notes = {key: content[key] for key in content if key not in known and key not in DERIVED}
        card = cls.checked({**fields, "notes": notes}, source, strict=True)
        try:
            card.to_json()  # notes that are nested too deeply to be written again
        except WeightsError as error:
            raise WeightsError(f"{source}: {error}") from None
        return card

    @classmethod
    def checked(
        cls, fields: Mapping[str, Any], source: object, *, strict: bool = False
    ) -> ModelCard:
        """The card with these fields; a WeightsError that names `source` if one is wrong.

        Args:
            strict: refuse values that would have to be converted, such as texts for numbers.
        """
        try:
            return cls.model_validate(fields, strict=strict)
        except ValidationError as error:
            raise WeightsError(f"{source}: {first_mistake(error)}") from None


def first_mistake(error: ValidationError) -> str:
    """The first wrong entry, and what is wrong with it."""
    # For `clips`, pydantic names each class that it tried, the more general one last.
    mistakes = error.errors()
    mistake = [m for m in mistakes if m["loc"][:1] == mistakes[0]["loc"][:1]][-1]
    key = ".".join(part for part in map(str, mistake["loc"]) if part == part.lower())
    kind = mistake["type"]
    if kind == "value_error":  # of this project
        return f"{key + ': ' if key else ''}{mistake['msg'].removeprefix('Value error, ')}"
    if kind in ("missing", "extra_forbidden"):
        return f"{key} is {'missing' if kind == 'missing' else 'unknown'}"
    allowed = next(
        (text for start, text in ALLOWED.items() if kind.startswith(start)), "of its type"
    )
    bounds = mistake.get("ctx", {}).items()
    allowed = allowed.format(**{k: v if isinstance(v, str) else shown(v) for k, v in bounds})
    return f"{key} is {shown(mistake['input'])}; it must be {allowed}"


def _as_tuples(value: Any) -> Any:
    """Lists as tuples, in an entry of a card and one level below: JSON has lists alone."""
    if isinstance(value, dict):
        return {key: as_tuple(inner) for key, inner in value.items()}
    return as_tuple(value)
