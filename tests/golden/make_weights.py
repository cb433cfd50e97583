"""Deterministic weights and inputs for parity checks, independent of torch's generators.

Every tensor of a state dict gets values from a PCG64 stream seeded with the crc32 of its
official parameter name, so that two implementations can be given the same weights without
shipping them.
"""

import math
import zlib

import numpy as np
import torch


def value(name: str, shape) -> torch.Tensor:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    x = rng.standard_normal(tuple(shape), dtype=np.float32)
    if name.endswith("weight") and len(shape) == 1:  # a norm's scale
        x = 1 + 0.1 * x
    elif name.endswith("bias"):
        x = 0.02 * x
    elif "pos_embed" in name or "mask_token" in name:
        x = 0.5 * x
    else:
        x = x / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))


def fill(state_dict):
    return {k: value(k, v.shape) for k, v in state_dict.items()}


def clip(shape, seed=0):
    """A smooth, moving input with structure at several scales, about unit variance."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape, dtype=np.float32) * 0.3
    grids = np.meshgrid(*[np.linspace(0, 1, n, dtype=np.float32) for n in shape[2:]], indexing="ij")
    for b in range(shape[0]):
        for c in range(shape[1]):
            for _ in range(4):
                f = rng.uniform(1, 12, len(grids)).astype(np.float32)
                wave = sum(fi * g for fi, g in zip(f, grids, strict=True))
                x[b, c] += 0.5 * np.sin(2 * np.pi * wave + rng.uniform(0, 6.28))
    return torch.from_numpy(x)


def sample(t, n=256):
    """n values spread over the flattened tensor, with its mean and standard deviation."""
    f = t.detach().float().reshape(-1)
    i = torch.linspace(0, f.numel() - 1, min(n, f.numel()), dtype=torch.float64).long()
    return {
        "shape": list(t.shape),
        "mean": f.double().mean().item(),
        "std": f.double().std().item(),
        "values": f[i].tolist(),
    }
