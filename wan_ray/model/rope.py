"""Rotary position embedding over time, height and width."""

from functools import lru_cache

import torch
from torch import Tensor

THETA = 10000.0


@lru_cache(maxsize=16)
def rotary_table(grid: tuple[int, int, int], head_dim: int, device: torch.device) -> Tensor:
    """Unit rotations for a (frames, rows, columns) grid of tokens: complex64 [num_tokens, 1, head_dim / 2].

    Height and width get a third of the pairs each, rounded down; time gets the rest. Angles are computed in float64.
    Wan2.1 model.py:39-67 (9737cba).
    """
    pairs = head_dim // 2
    side = pairs // 3
    angles = []
    for dim, (length, count) in enumerate(zip(grid, (pairs - 2 * side, side, side), strict=True)):
        frequencies = THETA ** -(torch.arange(count, dtype=torch.float64) / count)
        table = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
        shape = [1, 1, 1, count]
        shape[dim] = length
        angles.append(table.view(shape).expand(*grid, count))
    flat = torch.cat(angles, dim=-1).reshape(-1, 1, pairs)
    return torch.polar(torch.ones_like(flat), flat).to(torch.complex64).to(device)


def rotate(x_BNHD: Tensor, table: Tensor) -> Tensor:
    """Neighbouring channels of each head turned as pairs by the table, in float32; dtype of the input."""
    pairs = torch.view_as_complex(x_BNHD.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table).flatten(-2).to(x_BNHD.dtype)
