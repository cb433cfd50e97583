"""`hiera-video extract INPUT`: features of many videos, one file a video, and an index."""

import logging
import os
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hiera_video.data.checks import check_videos
from hiera_video.data.loader import num_workers, start_decoding
from hiera_video.data.transforms import Crops
from hiera_video.data.videos.folders import is_media
from hiera_video.data.videos.records import VideoRecord, read_video_list
from hiera_video.errors import ConfigError, UserError, counted
from hiera_video.extraction.features import FeatureExtractor, fingerprint
from hiera_video.extraction.reading import ReadWindows
from hiera_video.extraction.runner import Assembly, Summary, extract
from hiera_video.extraction.store import FeatureStore, Format, output_names
from hiera_video.extraction.windows import DenseWindows, ViewWindows, WindowSampler
from hiera_video.models.card import ModelCard
from hiera_video.models.checkpoint import read_checkpoint, with_card
from hiera_video.models.hiera import Hiera
from hiera_video.models.normalize import Normalize
from hiera_video.models.pretrained import load_model
from hiera_video.runtime.distributed import barrier, from_main, on_main, process_group
from hiera_video.runtime.dry_run import in_the_way
from hiera_video.runtime.progress import Progress
from hiera_video.runtime.results import exit_code, print_json, print_result
from hiera_video.settings.evaluation import ExtractSettings
from hiera_video.settings.training import Arithmetic
from hiera_video.settings.video import Reading
from hiera_video.video.clips import ClipSampler
from hiera_video.video.open import opener

logger = logging.getLogger(__name__)

MAX_PRINTED = 10  # videos of a kind; the files have all


def run(config: ExtractSettings, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Extracts the features that are missing and writes the tables; returns the exit code."""
    if config.engine == "ray":
        from hiera_video.extraction.ray import check_installed

        check_installed()
    if config.engine == "local" and not dry_run:
        start_decoding(config.data)
    with (
        process_group(config.device, config.precision, config.compile) as process,
        ExitStack() as stack,
    ):
        videos = find_videos(config.inputs, config.data)
        weights = with_card(read_checkpoint(config.checkpoint, weights_key=config.weights_key))
        is_autoencoder = weights.card is not None and weights.card.kind == "autoencoder"
        model, card = load_model(
            weights,
            kind="backbone",
            num_frames=config.num_frames,
            image_size=config.image_size,
        )
        source, num_frames = config.inputs[0], model.input_size[0]
        unreadable = on_main(lambda: check_videos("FILE", source, videos, config.data, num_frames))
        if is_autoencoder and process.is_main:
            logger.warning(
                "%s is a masked autoencoder that was not fine-tuned: as they are, such features "
                "are weak; fine-tune it first, or train a probe on top",
                config.checkpoint,
            )
        # With the hash of the weights as they are, before they are moved or converted.
        work, settings = make_work(config, model, card, process.precision)
        crops = work.crops.num_crops
        batch_size = max(1, config.batch_size // crops) * crops  # of whole windows
        extractor = FeatureExtractor(
            model,
            layer=config.layer,
            pooling=config.pooling,
            normalize=Normalize(card.mean, card.std),
            device=process.device,
            precision=process.precision,
            compile=config.compile,
            batch_size=batch_size,
            dtype=config.dtype,
        )
        format: Format = "npz" if config.format == "parquet" else config.format
        store = FeatureStore(Path(config.output_dir), format, settings)
        if not config.overwrite:
            with in_the_way(config, "output_dir"):
                store.check()
        ours = videos[process.rank :: process.world_size]
        to_do = [
            video
            for video in Progress(ours, unit="video", enabled=process.is_main)
            if store.is_pending(
                video.name,
                video.path,
                retry_failed=config.retry_failed,
                overwrite=config.overwrite,
                frames_fps=video.frames_fps,
            )
        ]
        logger.info("%d of %d videos are to be read", len(to_do), len(ours))
        if dry_run:
            found = {"videos": len(ours), "to_do": len(to_do), "unreadable": unreadable}
            print_json({**found, **settings}, indent=2)
            num_failed = unreadable.total()
            return exit_code(done=len(videos) - num_failed, failed=num_failed)
        barrier()  # nobody writes before all have looked
        # And not before the folder is there.
        on_main(lambda: stack.enter_context(store.writing(overwrite=config.overwrite)))
        workers = num_workers(config.data, process.local_world_size)
        assembly = Assembly(
            to_do, store, workers, precision=process.precision, progress=process.is_main
        )
        with closing(assembly):
            if config.engine == "local":
                extract(assembly, work, extractor)
            else:
                from hiera_video.extraction.ray import extract_with_ray

                extract_with_ray(assembly, work, extractor, gpus_per_model=config.gpus_per_model)
        barrier()
        code = None
        if process.is_main:
            code = finish(config, store, videos, assembly.summary, as_json)
        # Together: torchrun ends all processes when one has left with another code than 0.
        return from_main(code) or 0


def find_videos(inputs: list[str], data: Reading) -> list[VideoRecord]:
    """The videos of a folder or a list, or those named one by one; their names are of outputs.

    The name of a part of a video is that of the video and the part, `a.mp4#t=2,4.5`.

    Raises:
        UserError: none, several folders or lists, or two videos with the same output.
    """
    if all(is_media(name) and not os.path.isdir(name) for name in inputs):
        for key in ("root", "split"):
            if getattr(data, key) is not None:
                raise ConfigError(f"data.{key} is for lists: leave it out beside named videos")
        paths = dict.fromkeys(map(os.path.abspath, inputs))
        records = [VideoRecord(path, (), path) for path in paths]
        base = os.getcwd()
    elif len(inputs) == 1:
        source = Path(inputs[0])
        found = read_video_list(
            source,
            root=data.root,
            labelled=False,
            split=data.split,
            frames_fps=data.frames_fps,
        )
        records = list(found.records)
        base = str(source) if source.is_dir() else data.root or str(source.parent)
        if records[0].path == os.path.abspath(source):  # a folder of frames
            base = os.path.dirname(records[0].path)
    else:
        raise UserError(f"{' '.join(inputs)}: give one folder, one list, or nothing but videos")
    outputs = (f"{record.path}{record.part or ''}" for record in records)
    names = output_names(outputs, os.path.abspath(os.path.expanduser(base)))
    return [replace(record, name=name) for name, record in zip(names, records, strict=True)]


def make_work(
    config: ExtractSettings, model: Hiera, card: ModelCard, precision: Arithmetic
) -> tuple[ReadWindows, dict[str, Any]]:
    """What to read of each video, and all settings that decide on its features."""
    num_frames, crop_size, how = model.input_size[0], model.input_size[1:], config.windows
    sampler = ClipSampler.of(config.clips, num_frames)
    crops = Crops(crop_size, how.num_crops, how.short_side, "windows.short_side")
    windows: WindowSampler = DenseWindows(sampler, how)
    if how.kind == "views":
        windows = ViewWindows(sampler, how.num_clips, how.clip_rule)
    settings = {
        "model": card.name,
        "weights": fingerprint(model),
        "layer": config.layer,
        "pooling": config.pooling,
        "dtype": config.dtype,
        "precision": precision,
        "num_frames": num_frames,
        **config.clips.model_dump(),
        "windows": how.kind,
        **how.model_dump(include=set(how.own_keys[how.kind])),
        "num_crops": crops.num_crops,
        "crop_size": list(crop_size),
        "short_side": crops.short_side,
        "backend": config.data.backend,
        "mean": list(card.mean),
        "std": list(card.std),
    }
    for key in ("frames_fps", "max_gap_sec"):
        if (value := getattr(config.data, key)) is not None:
            settings[key] = value
    open_video, deadline_sec = opener(config.data, num_frames), config.data.deadline_sec
    return ReadWindows(windows, crops, open_video, deadline_sec), settings


def finish(
    config: ExtractSettings,
    store: FeatureStore,
    videos: list[VideoRecord],
    summary: Summary,
    as_json: bool,
) -> int:
    """Writes the tables of all videos of the list and prints a summary; returns the exit code."""
    rows = store.write_tables({video.name: video.path for video in videos})
    failed = [row for row in rows if row["status"] == "failed"]
    damaged = [row for row in rows if row["status"] == "done" and row.get("damage") is not None]
    report: dict[str, Any] = {
        "videos": len(videos),
        "done": len(rows) - len(failed),
        "failed": len(failed),
        "windows": sum(row["num_windows"] for row in rows if row["status"] == "done"),
        "short": sum(row["is_short"] for row in rows if row["status"] == "done"),
        "damaged": len(damaged),
        "output_dir": config.output_dir,
    }
    if config.format == "parquet":
        report["parquet"] = str(store.write_parquet(rows))
    lines = [
        f"{report['done']} of {len(videos)} videos have features, {len(failed)} failed; "
        f"{counted(report['windows'], 'window')}, "
        f"{counted(report['short'], 'video')} shorter than a clip",
        *str(summary).split("\n"),
    ]
    cut_short = [f"done as far as it goes: {row['path']}: {row['damage']}" for row in damaged]
    unread = [f"failed: {row['error']}" for row in failed]
    for messages, file in ((cut_short, "index.jsonl"), (unread, "failures.jsonl")):
        lines += messages[:MAX_PRINTED]
        if len(messages) > MAX_PRINTED:
            lines.append(f"and {len(messages) - MAX_PRINTED} more, see {store.folder / file}")
    if failed:
        lines.append(
            "failed videos are read again once their files have changed; --retry-failed reads all "
            "of them again"
        )
    lines.append(f"results are in {config.output_dir}")
    record = {**report, "this_process": asdict(summary)}
    print_result(record, lines, as_json=as_json)
    return exit_code(done=len(videos) - len(failed), failed=len(failed))
