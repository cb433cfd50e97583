"""Features on disk: one file a video, complete or absent; and tables of what there is.

    output_dir/
        extract.json           the settings, and their hash
        features/a/b.mp4.npz   of the video a/b.mp4
        failed/a/c.mp4.json    why c.mp4 has no features
        index.jsonl            one line a video
        failures.jsonl         those lines that are failures
        features.parquet       all features as one table, where asked for

The first three are the truth, written under temporary names and renamed. The tables are made from
them at the end, so that a run may be killed at any moment.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import tempfile
import weakref
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

import hiera_video
from hiera_video.errors import UserError
from hiera_video.files import remove_unfinished, replacing

Format = Literal["npz", "npy", "safetensors"]
FORMAT_VERSION = 1  # part of the hash: a change of what features mean must change it
MAX_NAME_BYTES = 200  # of a component of a path; file systems allow 255
TIMES = ("start_sec", "end_sec", "center_sec")

logger = logging.getLogger(__name__)


class StoreError(UserError, RuntimeError):
    """The output folder cannot be written, or holds what must not be replaced."""


@dataclass(frozen=True)
class Features:
    """What `load_features` returns: the features of the N windows of a video.

    With three crops, `features` has their axis after N. `bfloat16` features come as float32.
    """

    features: Shaped[np.ndarray, "N ..."]
    start_sec: Float64[np.ndarray, " N"]
    end_sec: Float64[np.ndarray, " N"]
    center_sec: Float64[np.ndarray, " N"]
    metadata: dict[str, Any]


def load_features(path: str | os.PathLike[str]) -> Features:
    """Reads a file that `hiera-video extract` wrote: .npz, .npy (with its .json) or .safetensors.

    Raises:
        ValueError: another kind of file.
    """
    path = Path(path)
    if path.suffix == ".npz":
        with np.load(path) as file:
            arrays = {name: file[name] for name in ("features", *TIMES)}
    elif path.suffix == ".npy":
        times = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        arrays = {name: np.array(times[name], np.float64) for name in TIMES}
        arrays["features"] = np.load(path)
    elif path.suffix == ".safetensors":
        from safetensors.torch import load_file

        tensors = load_file(path)
        if tensors["features"].dtype == torch.bfloat16:  # which NumPy lacks
            tensors["features"] = tensors["features"].float()
        arrays = {name: tensors[name].numpy() for name in ("features", *TIMES)}
    else:
        raise ValueError(f"{path}: features are .npz, .npy or .safetensors files")
    return Features(**arrays, metadata=read_metadata(path))


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of an output, without its features.

    Raises:
        StoreError: the file is not one that `hiera-video extract` wrote, or is damaged.
    """
    try:
        return _read_metadata(path)
    except Exception as error:  # each format has its own ways to be broken
        raise StoreError(
            f"{path}: not a file of features, or damaged; if it is in the way, delete it"
        ) from error


def _read_metadata(path: Path) -> dict[str, Any]:
    if path.suffix == ".npz":
        with zipfile.ZipFile(path) as archive, archive.open("metadata.npy") as file:
            return json.loads(str(np.lib.format.read_array(file)))
    if path.suffix == ".npy":
        return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["metadata"]
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return json.loads(file.metadata()["hiera_video"])


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Of all that decides on the features of a given video."""
    text = json.dumps([FORMAT_VERSION, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def output_names(paths: Iterable[str], root: str) -> list[str]:
    """Where the outputs of videos belong, relative to a folder of outputs and without a suffix.

    The path below `root`; of a video elsewhere its whole path, below `_elsewhere`. Never outside.

    Raises:
        StoreError: two videos would share a file, or one's file be another's folder.
    """
    names: dict[str, str] = {}
    for path in paths:
        relative = os.path.relpath(path, root)
        if relative.startswith(os.pardir + os.sep) or os.path.isabs(relative):
            relative = os.path.join("_elsewhere", *Path(os.path.abspath(path)).parts[1:])
        name = "/".join(_component(part) for part in Path(relative).parts)
        if name in names:
            raise StoreError(f"{path} and {names[name]} would have the same output, {name}")
        names[name] = path
    for name in names:
        for parent in PurePosixPath(name).parents:
            other, suffix = os.path.splitext(str(parent))
            if other in names and suffix in (".npz", ".npy", ".safetensors", ".json"):
                raise StoreError(f"{names[name]} would be below the output of {names[other]}")
    return list(names)


def _component(name: str) -> str:
    """A part of a path as text, shortened where a suffix would make it too long."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    data = text.encode()
    if len(data) <= MAX_NAME_BYTES:
        return text
    kept = data[: MAX_NAME_BYTES - 17].decode("utf-8", "ignore")
    return f"{kept}~{hashlib.sha256(data).hexdigest()[:16]}"


class FeatureStore:
    """The outputs of one configuration in a folder.

    Args:
        folder: made if it is not there.
        settings: all that decides on the features of a given video.
    """

    def __init__(self, folder: Path, format: Format, settings: Mapping[str, Any]) -> None:
        self.folder, self.format, self.settings = folder, format, dict(settings)
        self.hash = settings_hash(settings)

    def output(self, name: str) -> Path:
        return self.folder / "features" / f"{name}.{self.format}"

    def failure(self, name: str) -> Path:
        return self.folder / "failed" / f"{name}.json"

    def row(self, name: str) -> dict[str, Any] | None:
        """What is known of a video under this configuration; None where nothing is.

        Raises:
            StoreError: its output is of another configuration.
        """
        output = self.output(name)
        if output.exists():
            metadata = read_metadata(output)
            if metadata["hash"] != self.hash:
                raise self._other(output, metadata["settings"])
            facts = {"path": metadata["path"], "status": "done", "cause": None, "error": None}
            output_name = output.relative_to(self.folder).as_posix()
            return {"video": name, **facts, "output": output_name, **metadata["facts"]}
        if self.failure(name).exists():
            failure = _read_json(self.failure(name))
            if failure.pop("hash") == self.hash:
                return failure
        return None

    def is_pending(self, name: str, path: str, *, retry_failed: bool, overwrite: bool) -> bool:
        """Whether a video is still to be read."""
        try:
            row = self.row(name)
            self._check_same(path, row)
        except StoreError:
            if not overwrite:
                raise
            return True
        if row is not None and row["status"] == "failed":  # or another video failed by this name
            return retry_failed or row["path"] != _printable(path)
        return row is None

    def _check_same(self, path: str, row: dict[str, Any] | None) -> None:
        """Raises a StoreError where what there is was made of another file."""
        with contextlib.suppress(OSError):  # reading it will tell
            size = os.path.getsize(path)
            if row is not None and row.get("size_bytes", size) != size:
                raise StoreError(
                    f"{path} has {size} bytes, but {self.folder / row['output']} was made of "
                    f"{row['path']} with {row['size_bytes']}: choose another output_dir, or set "
                    "overwrite=true to replace it"
                )

    def check(self) -> None:
        """Raises a StoreError where the folder holds features of another configuration."""
        path = self.folder / "extract.json"
        if path.exists():
            found = _read_json(path)
            if found["hash"] != self.hash:
                raise self._other(self.folder, found["settings"])

    def start(self, *, overwrite: bool = False) -> None:
        """Writes extract.json; before hours of work, not after, tells whether that is possible.

        The folder is this object's from here on, until it or the process ends, however that comes
        about; on a file system over a network maybe only as seen from this machine.

        Raises:
            StoreError: another extraction has it, it cannot be written, or, unless `overwrite`, as
                `check` raises it.
        """
        self._lock()
        if not overwrite:
            self.check()
        remove_unfinished(self.folder)
        text = json.dumps({"hash": self.hash, "settings": self.settings}, indent=2)
        self._write_text(self.folder / "extract.json", text + "\n")

    def _lock(self) -> None:
        import fcntl  # not everywhere, and reading features needs none

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            held = os.open(self.folder, os.O_RDONLY)
        except OSError as error:
            raise _cannot_write(self.folder, error) from error
        weakref.finalize(self, os.close, held)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"{self.folder}: another extraction writes into it; wait for its end, or choose "
                "another output_dir"
            ) from None
        except OSError as error:
            logger.warning(
                "%s cannot be locked (%s): see to it that no other extraction writes into it",
                self.folder,
                error.strerror,
            )

    def write(
        self,
        name: str,
        path: str,
        features: Rows,
        *,
        start_sec: np.ndarray,
        end_sec: np.ndarray,
        facts: Mapping[str, Any],
    ) -> None:
        """Writes the features of a video, in place of whatever there was."""
        metadata = json.dumps(
            {
                "hiera_video": hiera_video.__version__,
                "video": name,
                "path": _printable(path),
                "hash": self.hash,
                "settings": self.settings,
                "facts": dict(facts),
            },
            ensure_ascii=False,
        )
        times = {
            "start_sec": np.asarray(start_sec, np.float64),
            "end_sec": np.asarray(end_sec, np.float64),
            "center_sec": (np.asarray(start_sec) + np.asarray(end_sec)) / 2,
        }
        output = self.output(name)
        if self.format == "npz":
            arrays = {"features": features.numpy(), **times, "metadata": np.array(metadata)}
            self._replace(output, lambda file: np.savez(file, **arrays))
        elif self.format == "npy":
            output.unlink(missing_ok=True)  # complete is what has both files
            listed = {key: value.tolist() for key, value in times.items()}
            text = json.dumps({**listed, "metadata": json.loads(metadata)}, ensure_ascii=False)
            self._write_text(output.with_suffix(".json"), text)
            self._replace(output, lambda file: np.save(file, features.numpy()))
        else:
            from safetensors.torch import save

            tensors = {key: torch.from_numpy(value) for key, value in times.items()}
            tensors["features"] = features.tensor()
            data = save(tensors, metadata={"hiera_video": metadata})
            self._replace(output, lambda file: file.write(data))
        self._remove_others(name, keep=self.format)
        self.failure(name).unlink(missing_ok=True)

    def _remove_others(self, name: str, keep: Format | None = None) -> None:
        """Removes what the video has in other formats, but for features of these settings."""
        for format in get_args(Format):
            if format != keep:
                output = self.folder / "features" / f"{name}.{format}"
                with contextlib.suppress(StoreError):
                    if output.exists() and read_metadata(output)["hash"] == self.hash:
                        continue
                output.unlink(missing_ok=True)
                if format == "npy":
                    output.with_suffix(".json").unlink(missing_ok=True)

    def fail(self, name: str, path: str, *, cause: str, message: str, seconds: float) -> None:
        """Records that a video has no features, and why."""
        row = {
            "video": name,
            "path": _printable(path),
            "status": "failed",
            "cause": cause,
            "error": _printable(message),
            "seconds": round(seconds, 3),
        }
        self._remove_others(name)
        text = json.dumps({**row, "hash": self.hash}, ensure_ascii=False)
        self._write_text(self.failure(name), text + "\n")

    def _other(self, path: Path, settings: Mapping[str, Any]) -> StoreError:
        keys = sorted(settings.keys() | self.settings.keys())
        changed = [
            f"{key} was {settings.get(key)}, is {self.settings.get(key)}"
            for key in keys
            if settings.get(key) != self.settings.get(key)
        ]
        return StoreError(
            f"{path} was made with other settings ({'; '.join(changed)}): choose another "
            "output_dir, or set overwrite=true to replace what there is"
        )

    def write_tables(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Writes index.jsonl and failures.jsonl of these videos, and returns the rows."""
        rows = [row for row in map(self.row, names) if row is not None]
        for file, chosen in (
            ("index.jsonl", rows),
            ("failures.jsonl", [row for row in rows if row["status"] == "failed"]),
        ):
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
            self._write_text(self.folder / file, "".join(lines))
        return rows

    def write_parquet(self, rows: Iterable[Mapping[str, Any]]) -> Path:
        """Writes features.parquet: a row a window, its features flat beside their shape."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        number = {"float32": pa.float32(), "float16": pa.float16()}[self.settings["dtype"]]
        columns = [("video", pa.string()), ("window", pa.int64())]
        columns += [(name, pa.float64()) for name in TIMES]
        columns += [("features", pa.large_list(number)), ("shape", pa.list_(pa.int64()))]
        schema = pa.schema(columns, {"hiera_video": json.dumps(self.settings)})

        def write(file: IO[bytes]) -> None:
            with pq.ParquetWriter(file, schema) as writer:
                for row in rows:
                    if row["status"] != "done":
                        continue
                    loaded = load_features(self.folder / row["output"])
                    count, *shape = loaded.features.shape
                    flat = loaded.features.reshape(count, -1)
                    offsets = np.arange(count + 1, dtype=np.int64) * flat.shape[1]
                    values = {
                        "video": [row["video"]] * count,
                        "window": np.arange(count),
                        **{name: getattr(loaded, name) for name in TIMES},
                        "features": pa.LargeListArray.from_arrays(offsets, flat.reshape(-1)),
                        "shape": [shape] * count,
                    }
                    writer.write_table(pa.table(values, schema))

        path = self.folder / "features.parquet"
        self._replace(path, write)
        return path

    def _write_text(self, path: Path, text: str) -> None:
        self._replace(path, lambda file: file.write(text.encode()))

    @staticmethod
    def _replace(path: Path, write: Callable[[IO[bytes]], object]) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as part, open(part, "wb") as file:
                write(file)
        except OSError as error:
            raise _cannot_write(path, error) from error


class Rows:
    """The features of one video while they come in, on disk: memory does not grow with N.

    Rows may come in any order. The file has no name, so that none is left behind.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._shape: tuple[int, ...] = ()
        self._dtype = torch.float32
        self._have: set[int] = set()

    def __len__(self) -> int:
        return len(self._have)

    def put(self, n: int, row: Tensor) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
                self._shape, self._dtype = tuple(row.shape), row.dtype
            data = row.contiguous().reshape(-1).view(torch.uint8).numpy()
            self._file.seek(n * data.nbytes)
            self._file.write(data.data)
            self._file.flush()
        except OSError as error:
            raise _cannot_write(self._folder, error) from error
        self._have.add(n)

    def numpy(self) -> np.ndarray:
        """[N, ...], mapped from the file."""
        assert self._file is not None
        shape = (len(self), *self._shape)
        return np.memmap(self._file, str(self._dtype).removeprefix("torch."), "r", shape=shape)

    def tensor(self) -> Tensor:
        """The same as a tensor, in memory: for types that NumPy lacks."""
        assert self._file is not None
        self._file.seek(0)
        data = torch.frombuffer(bytearray(self._file.read()), dtype=self._dtype)
        return data.view(len(self), *self._shape)

    def close(self) -> None:
        if self._file is not None:
            # On a full disk `put` has told; closing tries to write the rest again.
            with contextlib.suppress(OSError):
                self._file.close()


def _printable(text: str) -> str:
    """A path or a message as JSON can hold it, whatever bytes are in it."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}): remove it") from error


def _cannot_write(path: Path, error: OSError) -> StoreError:
    reason = error.strerror or str(error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return StoreError(
        f"{path}: cannot be written ({reason}); nothing is half-written: "
        f"{'make room' if full else 'make it writable'}, and give the same command again to go on"
    )
