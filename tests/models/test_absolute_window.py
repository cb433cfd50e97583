"""Absolute-window embeddings, and the models that have them: timm's, and the encoders of SAM 2."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from hiera_video import Hiera, create_autoencoder, create_model, load_model, save_model
from hiera_video.errors import ModelError, WeightsError
from hiera_video.models.conversion import convert
from hiera_video.models.loading import card_of, load_weights
from hiera_video.models.positions import absolute_window
from hiera_video.models.variants import PUBLISHED, VARIANTS, variant_name

SMALL = "hiera_small_abswin_256"
TINY: dict[str, Any] = {  # of few parameters, with all that sets these models apart
    "input_size": (1, 64, 64),
    "embed_dim": 16,
    "num_heads": 1,
    "stages": (1, 1, 1, 1),
    "num_classes": 5,
    "patch_kernel": (1, 7, 7),
    "patch_stride": (1, 4, 4),
    "patch_padding": (0, 3, 3),
    "sep_pos_embed": False,
    "global_pos_size": (3, 5),
    "layer_scale": True,
    "expand_proj": False,
}


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in evaluation mode, its parameters large enough for each to matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("gamma") or ("norm" in name and name.endswith("weight")):
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_(0.05 * noise)
    return model.eval()


# timm's models.


@torch.inference_mode()
@pytest.mark.parametrize("side", [256, 320])
def test_timm_gives_the_same_logits_and_stages(side: int, tmp_path: Path) -> None:
    theirs = shaken(timm.create_model(SMALL, img_size=side))
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    model = create_model(SMALL, checkpoint=tmp_path / "timm.pth", image_size=side).eval()
    image = torch.randn(2, 3, side, side)
    expected = theirs(image)
    assert (model(image) - expected).abs().max() < 1e-5 * expected.std()
    for own, other in zip(
        model.forward_intermediates(image),
        theirs.forward_intermediates(image, intermediates_only=True),
        strict=True,
    ):
        own = own.squeeze(1).permute(0, 3, 1, 2)
        assert (own - other).abs().max() < 1e-4 * other.std()


def test_timm_writes_what_it_read(tmp_path: Path) -> None:
    theirs = shaken(timm.create_model(SMALL)).state_dict()
    torch.save(theirs, tmp_path / "timm.pth")
    model, card = load_model(tmp_path / "timm.pth")
    assert (card.name, card.num_classes) == (SMALL, 1000)
    convert(model, card, "timm", tmp_path / "again")
    again, _ = load_model(tmp_path / "again", kind="classifier")
    assert all(torch.equal(value, again.state_dict()[k]) for k, value in model.state_dict().items())
    written = load_file(tmp_path / "again" / "model.safetensors")
    assert written.keys() == theirs.keys()
    assert all(torch.equal(written[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("layout", ["official", "transformers", "sam2"])
def test_layouts_without_such_models(layout: Any, tmp_path: Path) -> None:
    model = create_model(SMALL, num_classes=0)
    with pytest.raises(WeightsError, match=f"{layout} has no model like {SMALL}, .*timm"):
        convert(model, card_of(model), layout, tmp_path / "x")


# The encoders of SAM 2.


class Sam2Block(nn.Module):
    """A block as arXiv 2408.00714 describes it, tokens [B, H, W, C], windows cut out of them."""

    def __init__(self, dim: int, out: int, heads: int, window: int, pool: bool) -> None:
        super().__init__()
        self.heads, self.window, self.pool = heads, window, pool
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(out, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(dim, 3 * out), "proj": nn.Linear(out, out)})
        layers = [nn.Linear(out, 4 * out), nn.Linear(4 * out, out)]
        self.mlp = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        if dim != out:
            self.proj = nn.Linear(dim, out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        if hasattr(self, "proj"):
            x = pooled(self.proj(y)) if self.pool else self.proj(y)
        side = self.window or y.shape[1]
        rows = []
        for top in range(0, y.shape[1], side):
            row = [
                self.attend(y[:, top : top + side, i : i + side])
                for i in range(0, y.shape[2], side)
            ]
            rows.append(torch.cat(row, dim=2))
        x = x + torch.cat(rows, dim=1)
        first, second = self.mlp["layers"]
        return x + second(F.gelu(first(self.norm2(x))))

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.attn["qkv"](x).chunk(3, dim=-1)
        q = pooled(q) if self.pool else q
        heads = [
            ((a @ b.mT) / a.shape[-1] ** 0.5).softmax(-1) @ c
            for a, b, c in zip(
                *(t.flatten(1, 2).chunk(self.heads, dim=-1) for t in (q, k, v)), strict=True
            )
        ]
        return self.attn["proj"](torch.cat(heads, dim=-1).view(q.shape))


def pooled(x: Tensor) -> Tensor:
    return F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


class Sam2(nn.Module):
    def __init__(self, stages: tuple[int, ...], windows: tuple[int, ...], everywhere: set[int]):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, 16, 7, 4, 3)})
        self.pos_embed = nn.Parameter(torch.empty(1, 16, 7, 7))
        self.pos_embed_window = nn.Parameter(torch.empty(1, 16, 8, 8))
        self.blocks, self.ends = nn.ModuleList(), []
        for stage, blocks in enumerate(stages):
            for i in range(blocks):
                first = stage > 0 and i == 0
                window = windows[stage - 1 if first else stage]
                if len(self.blocks) in everywhere:
                    window = 0
                out = 16 * 2**stage
                self.blocks.append(
                    Sam2Block(out // 2 if first else out, out, 2**stage, window, first)
                )
            self.ends.append(len(self.blocks) - 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.patch_embed["proj"](x)
        size = x.shape[2:]
        tiles = self.pos_embed_window.tile(1, 1, size[0] // 8, size[1] // 8)
        x = x + F.interpolate(self.pos_embed, size, mode="bicubic") + tiles
        x, outputs = x.permute(0, 2, 3, 1), []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.ends:
                outputs.append(x)
        return outputs


STAGES, WINDOWS, EVERYWHERE = (1, 2, 3, 2), (8, 4, 6, 3), {4}
SAM2: dict[str, Any] = {
    **TINY,
    "input_size": (1, 192, 192),
    "stages": STAGES,
    "num_classes": 0,
    "global_pos_size": (7, 7),
    "global_pos_antialias": False,
    "layer_scale": False,
    "expand_proj": True,
    "window_units": (1, 3, 3),
    "global_blocks": tuple(EVERYWHERE),
}


def sam2_file(path: Path, model: nn.Module) -> Path:
    """A file of SAM 2, which has more than the encoder."""
    state = {f"image_encoder.trunk.{key}": value for key, value in model.state_dict().items()}
    state |= {
        "image_encoder.neck.convs.0.conv.weight": torch.ones(1),
        "no_mem_embed": torch.ones(1),
    }
    torch.save({"model": state}, path)
    return path


@torch.inference_mode()
def test_sam2_gives_the_same_stages(tmp_path: Path) -> None:
    theirs = shaken(Sam2(STAGES, WINDOWS, EVERYWHERE))
    file = sam2_file(tmp_path / "sam2.pt", theirs)
    model = Hiera(**SAM2).eval()
    report = load_weights(model, file)
    assert report.layout == "sam2"
    assert report.reinitialised == ["norm.weight", "norm.bias"]
    assert report.dropped == ["image_encoder.neck.convs.0.conv.weight", "no_mem_embed"]
    image = torch.randn(2, 3, 192, 192)
    for own, other in zip(model.forward_intermediates(image), theirs(image), strict=True):
        assert (own.squeeze(1) - other).abs().max() < 1e-5 * other.std()
    # In windows as large as the picture, attention is everywhere.
    small = Hiera(**{**SAM2, "input_size": (1, 96, 96)}).eval()
    plain = Hiera(**{**SAM2, "input_size": (1, 96, 96), "window_units": None}).eval()
    load_weights(small, file)
    load_weights(plain, file)
    assert torch.allclose(
        small.forward_features(image[..., :96, :96]),
        plain.forward_features(image[..., :96, :96]),
        atol=1e-5,
    )


def test_sam2_writes_what_it_read(tmp_path: Path) -> None:
    theirs = timm.create_model("sam2_hiera_tiny", num_classes=0)
    names = {"mlp.fc1.": "mlp.layers.0.", "mlp.fc2.": "mlp.layers.1."}
    state = {}
    for key, value in theirs.state_dict().items():
        if not key.startswith("head."):
            for own, other in names.items():
                key = key.replace(own, other)
            state[f"image_encoder.trunk.{key}"] = value
    torch.save({"model": state | {"memory_encoder.x": torch.ones(1)}}, tmp_path / "sam2.pt")
    model, card = load_model(tmp_path / "sam2.pt")
    assert (card.name, card.kind) == ("sam2_hiera_tiny", "backbone")
    convert(model, card, "sam2", tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt")["model"]
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)


@torch.inference_mode()
def test_timm_has_the_same_sam2_encoder(tmp_path: Path) -> None:
    theirs = shaken(timm.create_model("sam2_hiera_tiny", num_classes=0))
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    model = create_model("sam2_hiera_tiny", checkpoint=tmp_path / "timm.pth", image_size=448).eval()
    image = torch.randn(1, 3, 448, 448)
    others = theirs.forward_intermediates(image, intermediates_only=True)
    for own, other in zip(model.forward_intermediates(image), others, strict=True):
        own = own.squeeze(1).permute(0, 3, 1, 2)
        assert (own - other).abs().max() < 1e-4 * other.std()


# The embedding.


def test_without_a_global_part_a_larger_picture_is_tiled() -> None:
    model = Hiera(**TINY)
    with torch.no_grad():
        model.pos_embed.zero_()
    twice = Hiera(**{**TINY, "input_size": (1, 128, 192)})
    twice.load_state_dict(model.state_dict())
    assert torch.equal(twice.get_pos_embed(), model.get_pos_embed().tile(1, 1, 1, 2, 3))


def test_parts_of_the_embedding() -> None:
    everywhere, window = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 8, 8)
    found = absolute_window(everywhere, window, (16, 24), antialias=False)
    expected = F.interpolate(everywhere, (16, 24), mode="bicubic")
    assert torch.equal(
        found - window.tile(1, 1, 2, 3),
        (expected + window.tile(1, 1, 2, 3)) - window.tile(1, 1, 2, 3),
    )
    half = absolute_window(everywhere.bfloat16(), window.bfloat16(), (16, 24), antialias=True)
    assert half.dtype == torch.bfloat16


def test_kept_units_see_the_embedding_of_their_place() -> None:
    model = Hiera(**{**TINY, "input_size": (1, 96, 96)})
    clip = torch.randn(1, 3, 1, 96, 96)
    kept = torch.arange(9)[None]
    assert torch.allclose(model.embed_units(clip, kept), model.embed(clip), atol=1e-6)


@torch.inference_mode()
def test_a_still_clip_has_the_logits_of_the_image(tmp_path: Path) -> None:
    image_model = shaken(Hiera(**TINY))
    save_model(tmp_path / "image", image_model)
    video = {
        **TINY,
        "input_size": (4, 96, 64),
        "patch_kernel": (3, 7, 7),
        "patch_stride": (2, 4, 4),
        "patch_padding": (1, 3, 3),
        "sep_pos_embed": True,
    }
    model = Hiera(**video).eval()
    report = load_weights(model, tmp_path / "image")
    assert report.resized == [
        "patch_embed.proj.weight: inflated over 3 frames, zero but in the middle",
        "pos_embed_temporal: 2 zeros, an image has no times",
    ]
    larger = Hiera(**{**TINY, "input_size": (1, 96, 64)}).eval()
    assert load_weights(larger, tmp_path / "image").resized == []
    still = torch.randn(2, 3, 1, 96, 64)
    expected = larger(still)
    found = model(still.expand(-1, -1, 4, -1, -1))
    assert (found - expected).abs().max() < 2e-5 * expected.std()
    # A video model is saved and read like any other, with frames of another size, too.
    save_model(tmp_path / "video", model)
    again, _ = load_model(tmp_path / "video", image_size=64, num_frames=8)
    assert again.pos_embed_temporal.shape == (1, 4, 16)


def test_pretraining(tmp_path: Path) -> None:
    arguments = {
        key: value for key, value in TINY.items() if key not in ("num_classes", "input_size")
    }
    model = create_autoencoder(
        "hiera_tiny_224",
        decoder_heads=1,
        decoder_dim=8,
        decoder_depth=1,
        image_size=64,
        **arguments,
    )
    model(
        torch.randn(2, 3, 64, 64), torch.tensor([[0, 2]]).expand(2, -1)
    ).square().mean().backward()
    assert model.encoder.pos_embed.grad is not None
    assert model.encoder.pos_embed_win.grad.abs().sum() > 0
    save_model(tmp_path / "mae", model)
    classifier = create_model(checkpoint=tmp_path / "mae", num_classes=3)
    assert torch.equal(classifier.pos_embed_win, model.encoder.pos_embed_win)
    with pytest.raises(ModelError, match="window_units is set"):
        create_autoencoder("sam2_hiera_tiny", decoder_heads=1)


# What is refused, and names.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window_units": (1, 3, 3)}, r"window_units is \(1, 3, 3\): .*\(1, 2, 2\) mask units"),
        ({"global_blocks": (4,)}, "global_blocks has 4: the blocks are 0 to 3"),
        (
            {"input_size": (2, 64, 64)},
            "global_pos_size is set: for several frames, set sep_pos_embed too",
        ),
    ],
)
def test_arguments_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Hiera(**{**TINY, **changes})


def test_plain_weights_are_refused(tmp_path: Path) -> None:
    plain = Hiera(**{**TINY, "global_pos_size": None, "layer_scale": False, "expand_proj": True})
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    with pytest.raises(WeightsError, match="the file has global_pos_size None, not"):
        load_weights(Hiera(**TINY), tmp_path / "plain.pth")


def test_names() -> None:
    for name, arguments in VARIANTS.items():
        assert variant_name(arguments) == name
    assert variant_name(TINY) == f"custom (nearest {SMALL})"
    assert PUBLISHED[f"{SMALL}.sbb2_pd_e200_in12k"].num_classes == 11821
