"""Where a classifier looks: maps over the tokens of a clip, in space and time.

Hiera averages its last tokens, and has no class token whose attention could be shown. Two methods
do without one: `gradient_map`, gradient times activation, and `rollout_map`, attention rollout.
`LIMITS` states what each does not show, docs/attention.md how well it finds the moving figures of
the demo.
"""

import math
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from hiera_video.errors import ModelError, counted
from hiera_video.models.blocks import Attends, HieraBlock
from hiera_video.models.hiera import Hiera
from hiera_video.models.units import Size3, divided
from hiera_video.settings.evaluation import MapMethod

# Tokens along each side of a map that finds something. On the demo's clips of 64 pixels, the map of
# the stage with 8 x 8 tokens had 3.4 times as much of its sum inside the figures' boxes as chance,
# that with 4 x 4 had 2.5 times, and that with 2 x 2 had 1.3 times.
FINE_ENOUGH = 8

LIMITS: dict[MapMethod, str] = {
    "gradient": "Gradient times activation, relative to the clip's average token: a local linear "
    "attribution. It shows what speaks for the class, neither what speaks against it nor what the "
    "model would say if a region were hidden.",
    "rollout": "Attention rollout: not specific to a class. It follows the attention of the blocks "
    "that attend beyond mask units and their residuals; values, MLPs and earlier blocks do not "
    "count.",
}


def default_stage(model: Hiera) -> int:
    """The last stage whose output has at least 8 tokens along height and width; else the first."""
    fine = [0]
    _, *sides = model.tokens_shape
    for stage in range(len(model.stage_ends)):
        if stage and stage <= len(model.pools):
            sides = [n // s for n, s in zip(sides, model.pools[stage - 1][1:], strict=True)]
        if min(sides) >= FINE_ENOUGH:
            fine.append(stage)
    return fine[-1]


def gradient_map(
    model: Hiera,
    clips: Shaped[Tensor, "B C *T H W"],
    class_ids: Int[Tensor, " B"] | None = None,
    *,
    stage: int | None = None,
) -> Float[Tensor, "B t h w"]:
    """ReLU of the sum over channels of a stage's output times the gradient of a class's logit.

    The output is taken as the model reads it, and relative to its mean over the clip:

    * The next stage reads tokens through a LayerNorm, and nothing else of them. Scaling a token
      changes no logit, so that gradient times activation is 0 in front of the LayerNorm (measured:
      1e-5 of the product of their lengths, the rest of eps and of rounding). It is taken behind it.
      Without `expand_proj` a residual passes by, and tokens are taken as they are.
    * The last stage's tokens are averaged and then normalised, so that their products add up to 0:
      such a map compares a token with the average one. Less the mean, those of the other stages do
      too, and find more (docs/attention.md).

    Args:
        model: a classifier in evaluation mode. The gradients of its parameters stay as they are.
        clips: normalised, on the model's device.
        class_ids: the class of each clip. None: that of its highest logit.
        stage: counted as in `Hiera.forward_intermediates`; -1 is the last. None: `default_stage`.

    Raises:
        ModelError: the model has no classifier, no such stage or no such class, or clips of another
            size.
    """
    if not isinstance(model, Hiera) or not model.num_classes:
        raise ModelError(
            "the model has no classifier whose logit could be differentiated: take that of "
            'load_model(..., kind="classifier")'
        )
    ends = model.stage_ends
    stage = default_stage(model) if stage is None else stage
    if not -len(ends) <= stage < len(ends):
        raise ModelError(f"stage is {stage}: the model has stages 0 to {len(ends) - 1}")
    stage %= len(ends)
    ids = None if class_ids is None else class_ids.tolist()
    if ids is not None and not {*ids} <= {*range(model.num_classes)}:
        raise ModelError(f"class_ids is {ids}: the model has {counted(model.num_classes, 'class')}")
    following = _blocks(model)[ends[stage] + 1 :]
    with torch.inference_mode(False):
        with torch.no_grad():
            tokens = model.encode(clips, num_stages=stage + 1)[stage]
        with torch.enable_grad(), ExitStack() as stack:
            x = tokens.requires_grad_()
            if following and following[0].proj is not None:
                tokens = following[0].norm1(x).detach().requires_grad_()
                hook = partial(_replaced, by=tokens)
                stack.enter_context(following[0].norm1.register_forward_hook(hook))
            for block in following:
                x = block(x, model.units_shape)
            logits = model.forward_head(x)
            ids = logits.argmax(dim=1).tolist() if ids is None else ids
            chosen = [of_clip[c] for of_clip, c in zip(logits, ids, strict=True)]
            (gradient,) = torch.autograd.grad(chosen, tokens)
        activation = tokens.detach().float()
        activation = activation - activation.mean(dim=(1, 2), keepdim=True)
        product = (gradient.float() * activation).sum(dim=-1, keepdim=True)
        return model.reroll(product.relu(), stage).squeeze(-1)


def _replaced(module: nn.Module, inputs: Any, output: Tensor, *, by: Tensor) -> Tensor:
    """A hook that replaces the output of a module."""
    return by


@torch.no_grad()
def rollout_map(model: Hiera, clips: Shaped[Tensor, "B C *T H W"]) -> Float[Tensor, "B t h w"]:
    """What the mean over the last tokens takes from each token, by attention alone; the sum is 1.

    A block is a matrix that takes each of its V output tokens from its U input tokens, and whose
    rows add up to 1: half of it is the attention, averaged over the heads, and half the residual.
    The product of the matrices of all blocks behind the last one that attends within mask units is
    averaged over its rows, as the model averages its last tokens; of published models, these are
    all but the first block of the third stage, and the fourth stage.

    Where a block pools, V is smaller than U. The queries are pooled before they attend, so that the
    attention is a V x U matrix as it stands. The residual, a maximum of each channel over the
    pooled tokens, takes equal parts of them.

    Args:
        model: in evaluation mode; a classifier is not needed.
        clips: normalised, on the model's device.

    Raises:
        ModelError: the last block attends within mask units, or clips of another size.
    """
    first = rollout_start(model)
    x = model.embed(model.as_clips(clips))
    queries_keys = []
    for i, block in enumerate(_blocks(model)):
        if i >= first:
            q, k, _ = block.attn.queries_keys_values(block.norm1(x))
            queries_keys.append((q.float(), k.float()))
        x = block(x, model.units_shape)

    batch, units, num_tokens, _ = x.shape
    weights = torch.full((batch, units, num_tokens), 1 / (units * num_tokens), device=x.device)
    for block, (q, k) in reversed([*zip(_blocks(model)[first:], queries_keys, strict=True)]):
        residual = weights.repeat(1, 1, block.pool) / block.pool
        windows = _windows(block.attn.attends, model.units_shape).to(x.device)
        weights = (_through_attention(weights, q, k, windows) + residual) / 2
    stage = sum(end < first - 1 for end in model.stage_ends)  # of the last block before `first`
    return model.reroll(weights[..., None], stage).squeeze(-1)


def rollout_start(model: Hiera) -> int:
    """The first block of `rollout_map`: the one behind the last that attends within mask units."""
    within = [i for i, block in enumerate(_blocks(model)) if block.attn.attends == "within units"]
    first = max(within, default=-1) + 1
    if first == len(model.blocks):
        raise ModelError(
            "rollout needs blocks that attend beyond mask units at the end of the model, and its "
            "last block attends within them (mask_unit_attn): use the gradient map"
        )
    return first


def _blocks(model: Hiera) -> list[HieraBlock]:
    return [block for block in model.blocks if isinstance(block, HieraBlock)]


def _windows(attends: Attends, units: Size3) -> Int[Tensor, " M"]:
    """The number of the attention window that each mask unit lies in."""
    if attends == "everywhere":
        return torch.zeros(math.prod(units), dtype=torch.int64)
    assert attends != "within units"
    counts = divided(units, attends)
    sizes = dict(zip("TIJtij", counts + attends, strict=True))
    return repeat(torch.arange(math.prod(counts)), "(T I J) -> (T t I i J j)", **sizes)


def _through_attention(
    weights: Float[Tensor, "B M V"],
    q: Float[Tensor, "B M V h d"],
    k: Float[Tensor, "B M U h d"],
    windows: Int[Tensor, " M"],
) -> Float[Tensor, "B M U"]:
    """`weights` of the tokens behind an attention to those before it, the mean over the heads."""
    of_queries, of_keys = (windows.repeat_interleave(x.shape[2]) for x in (q, k))
    is_apart = of_queries[:, None] != of_keys
    rows = weights.flatten(1)[:, None]  # [B, 1, (M V)]
    q, k = (rearrange(x, "b m u h d -> h b (m u) d") for x in (q * q.shape[-1] ** -0.5, k))
    total = torch.zeros(rows.shape[0], k.shape[2], device=rows.device)
    for of_head, keys in zip(q, k, strict=True):  # one matrix [(M V), (M U)] at a time
        scores = (of_head @ keys.mT).masked_fill(is_apart, -torch.inf)
        total += (rows @ scores.softmax(dim=-1)).squeeze(1)
    return (total / len(q)).unflatten(1, (len(windows), -1))
