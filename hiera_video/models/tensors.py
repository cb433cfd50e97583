"""The tensors of a file of weights: what kind of file it is, and which of its states is taken.

The kind shows in the content, whatever the suffix. Nothing in a file is executed.
"""

import logging
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiera_video.errors import WeightsError, WeightsNotFoundError, listing

logger = logging.getLogger(__name__)

ENTRIES = ("model_state", "model", "module", "state_dict", "net")  # of the state to use, in files
WRAPPERS = re.compile(  # of torch.compile, Fabric, FSDP and checkpointing, around any module
    r"(?<![^.])_(orig_mod|forward_module|fsdp_wrapped_module|fpw_module|checkpoint_wrapped_module)\."
)
# What every Hiera has, in all layouts, with the prefix before it.
PATCHES = re.compile(
    r"((?:.*\.)?)(?:patch_embed\.proj|embeddings\.patch_embeddings\.projection)\.weight"
)
AROUND = {  # what stands beside an encoder of this name in a model of which it is a part
    "hiera": re.compile(r"classifier\.|decoder\.|multiscale_fusion\."),
    "encoder": re.compile(r"mask_token|decoder_|multi_scale_fusion_heads\.|roi_head\."),
}
LEGACY = b"l\xfc\x9cF\xf9 j\xa8P\x19"  # with which torch.save began before version 1.6
MAX_DEPTH = 4  # of dictionaries in a file

UNPACK = "unpack it and give the file inside"
STATE_DICT = "expected a state dict, saved by PyTorch or as safetensors"
SIGNATURES = (  # first bytes, what the file is, what to do
    (b"\x1f\x8b", "compressed by gzip", UNPACK),
    (b"BZh", "compressed by bzip2", UNPACK),
    (b"\xfd7zXZ", "compressed by xz", UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", UNPACK),
    (b"Rar!", "a RAR archive", UNPACK),
    (b"\x89HDF", "an HDF5 file, as Keras writes", STATE_DICT),
    (b"\x93NUMPY", "a NumPy array", STATE_DICT),
    (
        b"version https://git-lfs",
        "a Git LFS pointer, which only stands for the file",
        "fetch the file with `git lfs pull`",
    ),
)


@dataclass(frozen=True)
class State:
    """The tensors of one state dict, without the prefix that their keys share."""

    tensors: dict[str, Tensor]
    beside: list[str]  # keys of other tensors in the same dictionary, and of no other state
    name: str  # entries and prefix that lead to it; "" for a bare state dict
    taken: list[str]  # what was chosen or cut off, in words


def read_state(path: Path, weights_key: str | None = None) -> State:
    """The state dict of a file, which may be one of several, without the names of wrappers.

    Args:
        weights_key: the state to take, by the names of the entries that lead to it or by the prefix
            of its keys, such as `model_ema`. None: the only one, or that under `model_state`
            (official files), `model`, `module`, `state_dict` or `net`.

    Raises:
        WeightsNotFoundError: there is no such file.
        WeightsError: it is damaged, or holds something else, or no state can be chosen.
    """
    content = read_content(path)
    states = dict(_states(content, path)) if isinstance(content, dict) else {}
    if not states:
        found = map(str, content) if isinstance(content, dict) else [type(content).__name__]
        raise WeightsError(
            f"{path} holds no state dict, neither bare nor under {', '.join(ENTRIES)}; it has "
            f"{listing(list(found)) or 'nothing'}"
        )
    places = [place for place in states if weights_key is None or _is_named(place, weights_key)]
    if not places:
        raise WeightsError(
            f"{path}: weights_key is {weights_key!r}; the file holds {_names(states)}"
        )
    place = _plain(places)
    if place is None:
        raise WeightsError(
            f"{path} holds several states, {_names(places)}: choose one, such as "
            f"weights_key={'.'.join(places[0])}"
        )
    taken, others = [], [other for other in states if other != place]
    if others:
        hint = f"weights_key={'.'.join(others[0])} takes another"
        taken.append(f"{_names([place])}, of {_names(states)} ({hint})")
        if weights_key is None:
            logger.warning("%s holds several states; taken is %s", path, taken[0])
    entries, prefix = states[place]
    at = place[: len(place) - prefix.count(".")]
    if not others and not set(at) <= set(ENTRIES):
        taken.append(_names([at]))
    if prefix:
        taken.append(f"keys without {prefix!r}")
    if entries.wrappers:
        taken.append(f"keys without {', '.join(sorted(entries.wrappers))}")
    inner = tuple(p for e, p in states.values() if e is entries and len(p) > len(prefix))
    elsewhere = tuple(p for e, p in states.values() if e is entries and p != prefix)
    return State(
        {
            key.removeprefix(prefix): value
            for key, value in entries.tensors.items()
            if key.startswith(prefix) and not key.startswith(inner)
        },
        [k for k in entries.tensors if not k.startswith(prefix) and not k.startswith(elsewhere)],
        ".".join(place),
        taken,
    )


# The states of a file, by the names that lead to them.

Place = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Entries:
    """The tensors of one dictionary in a file."""

    tensors: dict[str, Tensor]
    wrappers: set[str]  # names that were taken out of the keys


def _states(content: dict[Any, Any], path: Path) -> Iterator[tuple[Place, tuple[_Entries, str]]]:
    """Each Hiera in a file, or, if there is none, each state dict: its dictionary and prefix."""
    dictionaries = dict(_dictionaries(content, path, ()))
    found = False
    for at, entries in dictionaries.items():
        prefixes = [match[1] for key in entries.tensors if (match := PATCHES.fullmatch(key))]
        for prefix in prefixes:
            found = True
            prefix = _of_the_whole(prefix, entries.tensors)
            yield (*at, *prefix.split(".")[:-1]), (entries, prefix)
    if found:
        return
    for at, entries in dictionaries.items():
        if all(name in ENTRIES for name in at):
            is_wrapped = all(key.startswith("module.") for key in entries.tensors)
            yield at, (entries, "module." if is_wrapped else "")


def _dictionaries(
    content: dict[Any, Any], path: Path, at: Place
) -> Iterator[tuple[Place, _Entries]]:
    tensors, wrappers = dict[str, Tensor](), set[str]()
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Tensor):
            wrappers |= {f"_{match[1]}" for match in WRAPPERS.finditer(key)}
            if (bare := WRAPPERS.sub("", key)) in tensors:
                raise WeightsError(f"{path} holds {bare} twice, with and without a wrapper's name")
            tensors[bare] = value
        elif isinstance(key, str) and isinstance(value, dict) and len(at) < MAX_DEPTH:
            yield from _dictionaries(value, path, (*at, key))
    if tensors:
        yield at, _Entries(tensors, wrappers)


def _of_the_whole(prefix: str, tensors: Mapping[str, Tensor]) -> str:
    """The prefix of a model around the encoder with `prefix`, if its other parts are there."""
    last = prefix[:-1].rpartition(".")[2]
    outer = prefix[: len(prefix) - len(last) - 1]
    is_part = last in AROUND and any(
        key.startswith(outer) and AROUND[last].match(key, len(outer)) for key in tensors
    )
    return outer if is_part else prefix


def _is_named(place: Place, key: str) -> bool:
    """Whether `key` is the name of a state or a part of it."""
    return f".{key}." in f".{'.'.join(place)}."


def _plain(places: list[Place]) -> Place | None:
    """The state that is not called an average, a teacher or the like."""
    if len(places) == 1:
        return places[0]
    depth = 0
    while len({place[: depth + 1] for place in places}) == 1:
        depth += 1
    for name in ((), *((entry,) for entry in ENTRIES)):
        if chosen := [place for place in places if place[depth : depth + 1] == name]:
            return _plain(chosen)
    return None


def _names(places: list[Place] | Mapping[Place, Any]) -> str:
    return ", ".join(".".join(place) or "one without a name" for place in places)


# What a file is.


def read_content(path: Path) -> Any:
    """What torch.save or safetensors wrote, whatever the suffix.

    Raises:
        WeightsNotFoundError: there is no such file.
        WeightsError: it is damaged or something else, which is named.
    """
    _check_readable(path)
    with path.open("rb") as file:
        start = file.read(1024)
    is_safetensors = start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**27
    if what := None if is_safetensors else _no_weights(path, start):
        raise WeightsError(f"{path} is {what}")
    try:
        if is_safetensors:
            from safetensors.torch import load_file  # not needed to build a model

            return load_file(path)
        with path.open("rb") as file:  # of a path, torch.load would look at the suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises any of six kinds on bytes that it did not write
        code = re.search(r"[Uu]nsupported (?:global: )?GLOBAL (\S+)", str(error))
        if code:
            raise WeightsError(
                f"{path} is refused: it holds a pickled {code[1]}, and unpickling may run any "
                "code. If you trust the file, save its state dict alone with torch.save"
            ) from error
        reason = f" ({error})" if is_safetensors else ""
        raise WeightsError(f"{path} is damaged or not a file of weights{reason}") from error


def _no_weights(path: Path, start: bytes) -> str | None:
    """What a file is that holds no weights, and what to do; None for what torch.load may read."""
    if not start:
        return "an empty file: copy or download it again"
    for signature, what, advice in SIGNATURES:
        if start.startswith(signature):
            return f"{what}: {advice}"
    if start[257:262] == b"ustar":
        return f"a tar archive: {UNPACK}"
    if start.startswith(b"PK\x03\x04"):
        return _no_weights_in_zip(path)
    text = start.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="ignore").strip()
    shown = repr(text.split("\n")[0][:40])
    if text.startswith("<"):
        return (
            f"a web page or XML that begins with {shown}: download the file itself, by the "
            "address of its raw content"
        )
    if text and all(c.isprintable() or c.isspace() for c in text):
        return f"a text that begins with {shown}: {STATE_DICT}"
    if LEGACY in start[:32]:
        return None
    if start.startswith(b"\x80"):
        return f"a pickle that torch.save did not write, or damaged: {STATE_DICT}"
    return f"damaged or not a file of weights: {STATE_DICT}"


def _no_weights_in_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
    except zipfile.BadZipFile:
        return "cut off, or damaged at its end: copy or download it again"
    if "constants.pkl" in names:
        return "a TorchScript archive, which holds a program: save the model's state dict instead"
    if "data.pkl" in names:
        return None
    if "archive_format" in names:
        return "a program of torch.export: give the weights that it was exported from"
    if all(name.endswith(".npy") for name in names):
        return f"an archive of NumPy arrays: {STATE_DICT}"
    return f"a zip archive: {UNPACK}"


def read_metadata(path: Path) -> dict[str, str]:
    """The texts in the header of a .safetensors file, which fits the size of the file.

    Raises:
        WeightsNotFoundError: there is no such file.
        WeightsError: the header is damaged, or the file was cut.
    """
    from safetensors import SafetensorError, safe_open

    _check_readable(path)
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged ({error})") from error


def _check_readable(path: Path) -> None:
    """Raises WeightsNotFoundError for a missing file, and an OSError that names it for others.

    The errors of safetensors name none.
    """
    if not path.is_file():
        if path.exists():
            raise WeightsError(f"{path}: a folder, a pipe or a device; expected a regular file")
        raise WeightsNotFoundError(f"{path}: there is no such file")
    path.open("rb").close()
