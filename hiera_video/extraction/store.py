"""Features on disk: one file for each video, complete or absent, and tables of them.

docs/extraction.md lists the files of an output folder. `extract.json`, `features/` and `failed/`
are written under temporary names and renamed; the tables are made from them at the end, so that a
run may be killed at any moment.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

import hiera_video
from hiera_video.data.batches import Failure
from hiera_video.errors import UserError
from hiera_video.extraction.identity import content_hash, file_state
from hiera_video.files import (
    json_text,
    locked,
    make_folder,
    missing_path,
    parse_json,
    remove_unfinished,
    replacing,
    reported,
    user_path,
    utf8_text,
    write_json,
)

if TYPE_CHECKING:  # reading features needs no decoder
    from hiera_video.data.videos.records import VideoRecord
    from hiera_video.extraction.reading import Read

Format = Literal["npz", "npy", "safetensors"]
FORMAT_VERSION = 2  # part of the hash: a change of what features mean must change it
MAX_NAME_BYTES = 200  # of a component of a path; file systems allow 255
TIMES = ("start_sec", "end_sec", "center_sec")


class StoreError(UserError, RuntimeError):
    """The output folder holds what must not be replaced, or what is damaged."""


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
        FileNotFoundError: there is no such file.
        StoreError: the file is not one that `hiera-video extract` wrote, or is damaged.
    """
    path = user_path(path)
    if path.suffix not in (".npz", ".npy", ".safetensors"):
        raise ValueError(f"{path}: features are .npz, .npy or .safetensors files")
    if not path.exists():
        raise FileNotFoundError(f"{path}: {missing_path(path)}")
    with _undamaged(path):
        arrays = _read_arrays(path)
        if len({len(array) for array in arrays.values()}) > 1:
            raise ValueError("features and times are of different numbers of windows")
    return Features(**arrays, metadata=read_metadata(path))


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """`features` and the times of an output; nothing in it is unpickled."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in ("features", *TIMES)}
    if path.suffix == ".npy":
        times = parse_json(path.with_suffix(".json").read_bytes())
        arrays = {name: np.array(times[name], np.float64) for name in TIMES}
        return {"features": np.load(path, allow_pickle=False), **arrays}
    from safetensors.torch import load_file

    tensors = load_file(path)
    if tensors["features"].dtype == torch.bfloat16:  # which NumPy lacks
        tensors["features"] = tensors["features"].float()
    return {name: tensors[name].numpy() for name in ("features", *TIMES)}


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of an output, without its features.

    Raises:
        StoreError: the file is not one that `hiera-video extract` wrote, or is damaged.
    """
    with _undamaged(path):
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                metadata = parse_json(str(file["metadata"]))
        elif path.suffix == ".npy":
            metadata = parse_json(path.with_suffix(".json").read_bytes())["metadata"]
        else:
            from safetensors import safe_open

            with safe_open(path, "np") as file:
                metadata = parse_json(file.metadata()["hiera_video"])
        _check_entries(metadata, {"path": str, "hash": str, "settings": dict, "facts": dict})
        _check_entries(metadata["facts"], {"num_windows": int, "is_short": bool})
    return metadata


@contextlib.contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    """Raises a StoreError for whatever reading an output raises."""
    try:
        yield
    except Exception as error:  # each format fails in its own ways
        raise StoreError(f"{path}: not a file of features, or damaged") from error


def _check_entries(record: Any, types: Mapping[str, type]) -> None:
    """Raises ValueError unless a record of an earlier extraction has entries of these types."""
    for key, kind in types.items():
        if not isinstance(record, dict) or not isinstance(record.get(key), kind):
            raise ValueError(f"{key} is missing or not of type {kind.__name__}")


def output_names(paths: Iterable[str], root: str) -> list[str]:
    """Paths of the outputs of videos, relative to a folder of outputs and without a suffix.

    They are the paths below `root`; a video elsewhere has its whole path, below `_elsewhere`.

    Raises:
        StoreError: two videos would share a file, or a file would be the folder of another one.
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
    """A part of a path as UTF-8, shortened where a suffix would make it too long."""
    data = utf8_text(name.replace("\0", r"\x00")).encode()
    if len(data) <= MAX_NAME_BYTES:
        return data.decode()
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
        text = json_text([FORMAT_VERSION, self.settings], sort_keys=True, ensure_ascii=True)
        self.hash = hashlib.sha256(text.encode()).hexdigest()[:16]

    def output(self, name: str) -> Path:
        return self.folder / "features" / f"{name}.{self.format}"

    def failure(self, name: str) -> Path:
        return self.folder / "failed" / f"{name}.json"

    def row(self, name: str) -> dict[str, Any] | None:
        """The line of a video in the index; None if it has neither features nor a failure.

        Raises:
            StoreError: its output is of another configuration.
        """
        output = self.output(name)
        if output.exists():
            metadata = read_metadata(output)
            self._check_settings(output, metadata)
            facts = {"path": metadata["path"], "status": "done", "cause": None, "error": None}
            output_name = output.relative_to(self.folder).as_posix()
            return {"video": name, **facts, "output": output_name, **metadata["facts"]}
        if self.failure(name).exists():
            failure = _read_json(self.failure(name), {"hash": str, "path": str, "error": str})
            if failure.pop("hash") == self.hash:
                return {**failure, "status": "failed"}
        return None

    def is_pending(
        self,
        name: str,
        path: str,
        *,
        retry_failed: bool,
        overwrite: bool,
        frames_fps: float | None = None,
    ) -> bool:
        """Whether a video is still to be read.

        A failure holds for the file as it was, features for a file of the same content.

        Args:
            frames_fps: rate of the frames in a folder, where the list states it.

        Raises:
            StoreError: unless `overwrite`, its features have other settings or are of another file.
        """
        try:
            row = self.row(name)
            if row is not None and row["status"] == "done":
                self._check_source(row, path, frames_fps)
                return False
        except StoreError:
            if not overwrite:
                raise
            return True
        if row is None or retry_failed or row["path"] != path:  # of another video of the name
            return True
        failed = {key: row[key] for key in ("size_bytes", "modified_ns") if key in row}
        return failed != _state_if_there(path)

    def _check_source(self, row: Mapping[str, Any], path: str, frames_fps: float | None) -> None:
        """Raises a StoreError unless the features of `row` are of the file at `path`."""
        is_path, before = row["path"] == path, "with other content"
        if row.get("frames_fps") != frames_fps:
            before = f"at {row.get('frames_fps')} frames per second, now {frames_fps}"
        else:
            try:
                now = file_state(path)
                recorded = {key: row.get(key) for key in now}
                if is_path and recorded == now:
                    return
                if recorded["size_bytes"] == now["size_bytes"] and (
                    row.get("sha256") == content_hash(path)
                ):
                    return  # moved, copied or touched
            except (OSError, ValueError) as error:
                if is_path:  # features may outlive their video
                    return
                before = f"and cannot be compared: {error}"
        output = self.folder / row["output"]
        raise StoreError(
            f"{path} is not known to be the file of which {output} was made ({row['path']}, "
            f"{before}): choose another output_dir, or set overwrite=true to replace it"
        )

    def check(self) -> None:
        """Raises a StoreError if the folder holds features of another configuration."""
        path = self.folder / "extract.json"
        if path.exists():
            self._check_settings(self.folder, _read_json(path, {"hash": str, "settings": dict}))

    def _check_settings(self, path: Path, made: Mapping[str, Any]) -> None:
        """Raises a StoreError if `path` was `made` with other settings, and names these."""
        if made["hash"] == self.hash:
            return
        before, now = made["settings"], self.settings
        changed = [
            f"{key} was {before.get(key)}, is {now.get(key)}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
        reasons = "; ".join(changed) or "an earlier version, which resized videos in another way"
        precision, same = before.get("precision"), ""
        if precision not in (None, now.get("precision")):  # "auto" may be another one here
            same = f"set precision={precision}, as there, "
        raise StoreError(
            f"{path} was made with other settings ({reasons}): {same}choose another "
            "output_dir, or set overwrite=true to replace what there is"
        )

    @contextlib.contextmanager
    def writing(self, *, overwrite: bool = False) -> Iterator[None]:
        """Locks the folder for the block, in which videos are written.

        It writes extract.json first, which shows whether the folder is writable.

        Raises:
            UserError: another process writes into the folder.
            OutputError: the folder cannot be written.
            StoreError: unless `overwrite`, it holds features of another configuration.
        """
        with contextlib.ExitStack() as stack:
            with reported(self.folder):
                stack.enter_context(locked(self.folder, "output_dir"))
            if not overwrite:
                self.check()
            remove_unfinished(self.folder, deep=True)
            with reported(self.folder):
                content = {"hash": self.hash, "settings": self.settings}
                write_json(self.folder / "extract.json", content)
            yield

    def write(self, video: VideoRecord, features: Rows, read: Read) -> None:
        """Writes the features of a video; replaces its earlier features or failure."""
        metadata = {
            "hiera_video": hiera_video.__version__,
            "video": video.name,
            "path": video.path,
            "hash": self.hash,
            "settings": self.settings,
            "facts": read.facts,
        }
        text = json_text(metadata)
        columns = (read.start_sec, read.end_sec, (read.start_sec + read.end_sec) / 2)
        times: dict[str, Any] = dict(zip(TIMES, columns, strict=True))
        output, tensor = self.output(video.name), features.tensor()
        if self.format == "npz":
            with _written(output) as file:
                np.savez(file, features=tensor.numpy(), **times, metadata=np.array(text))
        elif self.format == "npy":
            output.unlink(missing_ok=True)  # an output is complete if both files exist
            listed = {key: value.tolist() for key, value in times.items()}
            _write_lines(output.with_suffix(".json"), [{**listed, "metadata": metadata}])
            with _written(output) as file:
                # NumPy's own way into a file does not say why it failed.
                np.save(SimpleNamespace(write=file.write), tensor.numpy())
        else:
            from safetensors.torch import save

            tensors = {key: torch.from_numpy(value) for key, value in times.items()}
            data = save({**tensors, "features": tensor}, metadata={"hiera_video": text})
            with _written(output) as file:
                file.write(data)
        self._remove_others(video.name, keep=self.format)
        self.failure(video.name).unlink(missing_ok=True)

    def _remove_others(self, name: str, keep: Format | None = None) -> None:
        """Removes outputs in other formats than `keep`; of these settings, only in this format."""
        for format in get_args(Format):
            if format != keep:
                output = self.folder / "features" / f"{name}.{format}"
                with contextlib.suppress(StoreError):
                    is_another = format != self.format and output.exists()
                    if is_another and read_metadata(output)["hash"] == self.hash:
                        continue
                output.unlink(missing_ok=True)
                if format == "npy":
                    output.with_suffix(".json").unlink(missing_ok=True)

    def fail(self, failure: Failure, seconds: float) -> None:
        """Records that a video has no features, and why, and after how long."""
        self._remove_others(failure.name)
        # A file that was changed while it was read is another one already.
        state = {} if failure.cause == "changed" else _state_if_there(failure.path)
        row = {
            "video": failure.name,
            "path": failure.path,
            "status": "failed",
            "cause": failure.cause,
            "error": failure.message,
            **state,
            "seconds": round(seconds, 3),
            "hash": self.hash,
        }
        _write_lines(self.failure(failure.name), [row])

    def write_tables(self, paths: Mapping[str, str]) -> list[dict[str, Any]]:
        """Writes index.jsonl and failures.jsonl of these videos, and returns the rows.

        Args:
            paths: of the videos, by their names.
        """
        found = ((self.row(name), path) for name, path in paths.items())
        rows = [{**row, "path": path} for row, path in found if row is not None]
        _write_lines(self.folder / "index.jsonl", rows)
        failed = [row for row in rows if row["status"] == "failed"]
        _write_lines(self.folder / "failures.jsonl", failed)
        return rows

    def write_parquet(self, rows: Iterable[Mapping[str, Any]]) -> Path:
        """Writes features.parquet: a row for each window; features are flat, beside their shape."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        number = {"float32": pa.float32(), "float16": pa.float16()}[self.settings["dtype"]]
        columns = [("video", pa.string()), ("window", pa.int64())]
        columns += [(name, pa.float64()) for name in TIMES]
        columns += [("features", pa.large_list(number)), ("shape", pa.list_(pa.int64()))]
        schema = pa.schema(columns, {"hiera_video": json_text(self.settings)})

        path = self.folder / "features.parquet"
        with _written(path) as file, pq.ParquetWriter(file, schema) as writer:
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
        return path


class Rows:
    """The features of one video while they arrive, on disk: memory does not grow with N.

    Rows may arrive in any order. The file has no name, so that none is left behind.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with reported(folder):
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._shape: tuple[int, ...] = ()
        self._dtype = torch.float32
        self._have: set[int] = set()

    def __len__(self) -> int:
        return len(self._have)

    def put(self, n: int, row: Tensor) -> None:
        self._shape, self._dtype = tuple(row.shape), row.dtype
        data = row.contiguous().reshape(-1).view(torch.uint8).numpy()
        with reported(self._folder):
            self._file.seek(n * data.nbytes)
            self._file.write(data.data)
            self._file.flush()
        self._have.add(n)

    def tensor(self) -> Tensor:
        """[N, ...], mapped from the file."""
        data = torch.from_numpy(np.memmap(self._file, np.uint8, "c"))
        return data.view(self._dtype).view(len(self), *self._shape)

    def close(self) -> None:
        # On a full disk, `put` has raised the error; closing tries to write the rest again.
        with contextlib.suppress(OSError):
            self._file.close()


def _state_if_there(path: str) -> dict[str, int]:
    with contextlib.suppress(OSError, ValueError):
        return file_state(path)
    return {}


def _read_json(path: Path, types: Mapping[str, type]) -> dict[str, Any]:
    """A record with entries of these types."""
    try:
        record = parse_json(path.read_bytes())
        _check_entries(record, types)
        return record
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}): remove it") from error


def _write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes records as lines of JSON."""
    with _written(path) as file:
        for record in records:
            file.write(json_text(record).encode() + b"\n")


@contextlib.contextmanager
def _written(path: Path) -> Iterator[IO[bytes]]:
    """A file that becomes `path` when the block has ended; makes the folder if it is missing."""
    with reported(path):
        make_folder(path.parent)
        with replacing(path) as part, part.open("wb") as file:
            yield file
