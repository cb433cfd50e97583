"""`hiera-video convert`: weights in the layout of another project, read again as a check."""

from pathlib import Path

from hiera_video.errors import WeightsError, configured
from hiera_video.evaluation.prediction import with_class_names
from hiera_video.models.checkpoint import not_finite, shorten
from hiera_video.models.conversion import check_absent, convert
from hiera_video.models.layouts import check_writable
from hiera_video.models.pretrained import load_model
from hiera_video.runtime.results import print_planned, print_result
from hiera_video.settings.tools import ConvertSettings


def run(config: ConvertSettings, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Writes the file or folder, and says what came back; returns the exit code."""
    check_absent(Path(config.output))
    model, card = load_model(config.checkpoint, kind="backbone", weights_key=config.weights_key)
    card = with_class_names(card, config.data.class_names)
    if bad := not_finite(model.state_dict()):
        raise WeightsError(f"{config.checkpoint} holds values that are not finite: {shorten(bad)}")
    with configured():
        check_writable(config.layout, model.architecture)
    if dry_run:
        print_planned([config.output], as_json=as_json)
        return 0
    tensors = convert(model, card, config.layout, Path(config.output))
    print_result(
        {"path": config.output, "layout": config.layout, "tensors": tensors},
        [f"{config.output} ({config.layout} layout): {tensors} tensors, read again the same"],
        as_json=as_json,
    )
    return 0
