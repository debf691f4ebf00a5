"""Attention by itself: plain math, and a query's result whatever else is asked."""

import pytest
import torch
from torch import Tensor

from wan_ray.model.attention import FEWEST_ROWS, attend

ROWS = [16, 17, 19, 23, 31, 32, 33, 63, 75, 127, 150, 191, 192, 255, 257, 767, 768, 799]


def inputs(num_queries: int, num_keys: int, num_heads: int, width: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(num_keys)
    return [torch.randn(1, n, num_heads, width, generator=random) for n in (num_queries, num_keys, num_keys)]


@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 1), (5, 3), (33, 514), (70, 70)])
def test_attention_is_the_softmax_of_scaled_products(num_queries: int, num_keys: int) -> None:
    q, k, v = inputs(num_queries, num_keys, 3, 8)
    weights = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()).div(8**0.5).softmax(-1)
    wanted = torch.einsum("bhqk,bkhd->bqhd", weights, v.double()).float()
    torch.testing.assert_close(attend(q, k, v), wanted)


@pytest.mark.parametrize("num_keys", [1, 2, 17, 75, 257, 512, 513, 514, 1025, 1030])
@pytest.mark.parametrize(("num_heads", "width"), [(4, 24), (3, 32), (2, 64), (1, 128)])
def test_a_query_s_bits_do_not_depend_on_how_many_queries_there_are(num_heads: int, width: int, num_keys: int) -> None:
    q, k, v = inputs(800, num_keys, num_heads, width)
    whole = attend(q, k, v)
    assert [rows for rows in ROWS if not torch.equal(attend(q[:, :rows], k, v), whole[:, :rows])] == []
    assert torch.equal(attend(q[:, 40:59], k, v), whole[:, 40:59])


@pytest.mark.parametrize(("wide", "out"), [(64, 96), (144, 96), (384, 96), (1536, 1536), (128, 8960)])
def test_a_row_s_bits_do_not_depend_on_how_many_rows_there_are_from_the_fewest_on(
    request: pytest.FixtureRequest, wide: int, out: int
) -> None:
    """With one thread: more of them divide a product by its number of rows."""
    num_threads = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(num_threads))
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(wide)
    x, weight, bias = (torch.randn(shape, generator=random) for shape in ((300, wide), (out, wide), (out,)))
    whole = torch.nn.functional.linear(x, weight, bias)
    for rows in (FEWEST_ROWS, 17, 19, 23, 37, 75, 150):
        assert torch.equal(torch.nn.functional.linear(x[:rows].contiguous(), weight, bias), whole[:rows]), rows
