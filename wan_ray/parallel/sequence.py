"""Sequence parallelism: ranks share a clip's tokens. Ulysses trades tokens for heads, Ring passes keys on.

Exact for any number of tokens and heads. Letters: B batch, N a rank's tokens, S those of its Ulysses group, L keys,
H heads, D head width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from wan_ray.model.attention import FEWEST_ROWS, attend
from wan_ray.parallel.process_group import Groups

# From a rank's q, k, v [B, N, H, D] and how many of all ranks' tokens are real: what its tokens attended to.
Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]


@dataclass(frozen=True, kw_only=True)
class SequenceParallel:
    """How the tokens of one clip lie on the ranks of a sequence group: equal runs, in the order of the ranks.

    The last runs are filled up with pad, which no token attends to. A run has FEWEST_ROWS at least: so a token's result
    does not depend on how many ranks there are, if the clip has as many tokens.
    """

    groups: Groups
    num_tokens: int
    attention: Attention
    pad: float = 0.0

    def shard(self, tokens: Tensor, *, dim: int) -> Tensor:
        """This rank's run of all tokens."""
        length = max(-(-self.num_tokens // self.groups.degrees.sequence), FEWEST_ROWS)
        first = min(self.groups.sequence_rank * length, self.num_tokens)
        held = tokens.narrow(dim, first, min(length, self.num_tokens - first))
        lacking = length - held.shape[dim]
        if not lacking:
            return held.contiguous()
        shape = [*held.shape[:dim], lacking, *held.shape[dim + 1 :]]
        return torch.cat([held, held.new_full(shape, self.pad)], dim=dim)

    def gather(self, x_BND: Tensor) -> Tensor:
        """All tokens, on every rank."""
        parts = [torch.empty_like(x_BND) for _ in range(self.groups.degrees.sequence)]
        dist.all_gather(parts, x_BND.contiguous(), group=self.groups.sequence)
        return torch.cat(parts, dim=1)[:, : self.num_tokens]

    def attend(self, q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor) -> Tensor:
        """Attention of this rank's tokens over all of the clip's."""
        return self.attention(q_BNHD, k_BNHD, v_BNHD, self.num_tokens)

    def token_mean(self, values_BN: Tensor) -> Tensor:
        """Mean over all tokens but the pad, the same on every rank."""
        length = values_BN.shape[1]
        held = min(max(self.num_tokens - self.groups.sequence_rank * length, 0), length)
        total = values_BN[:, :held].sum()
        dist.all_reduce(total, group=self.groups.sequence)
        return total / (len(values_BN) * self.num_tokens)


def torch_attention(groups: Groups) -> Attention:
    """Ulysses x Ring in plain PyTorch, for gloo and NCCL."""

    def attention(q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor, num_tokens: int) -> Tensor:
        num_heads = q_BNHD.shape[2]
        q, k, v = _to_heads((q_BNHD, k_BNHD, v_BNHD), groups)
        if q.shape[2] == 0:  # more Ulysses ranks than heads; the ring neighbours have none either
            out = q
        elif groups.ring is None:
            out = attend(q, k[:, :num_tokens], v[:, :num_tokens])
        else:
            out = _ring(q, torch.stack([k, v]), groups, groups.ring, num_tokens)
        return _to_tokens(out, groups, num_heads)

    return attention


def exchange_passes(velocity: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
    """The conditional and the unconditional velocity, on every rank, from the one that this rank's half computed."""
    both = [torch.empty_like(velocity) for _ in range(2)]
    dist.all_gather(both, velocity.contiguous(), group=groups.cfg)
    return both[0], both[1]


def _shares(num_heads: int, ranks: int) -> list[int]:
    """Heads of each Ulysses rank: as even as can be, the first ranks have one more."""
    each, more = divmod(num_heads, ranks)
    return [each + (rank < more) for rank in range(ranks)]


def _to_heads(qkv: Sequence[Tensor], groups: Groups) -> Sequence[Tensor]:
    """All the Ulysses group's tokens of this rank's share of the heads: [B, S, H, D] each, in one exchange."""
    if groups.ulysses is None:
        return qkv
    batch, tokens, num_heads, head_dim = qkv[0].shape
    ranks = groups.degrees.ulysses
    shares = _shares(num_heads, ranks)
    mine = shares[groups.ulysses_rank]
    each = len(qkv) * batch * tokens * head_dim
    spans = list(pairwise(accumulate(shares, initial=0)))
    sent = torch.cat([x[:, :, first:end].reshape(-1) for first, end in spans for x in qkv])
    got = sent.new_empty(ranks * each * mine)
    dist.all_to_all_single(got, sent, [each * mine] * ranks, [each * share for share in shares], group=groups.ulysses)
    parts = got.view(ranks, len(qkv), batch, tokens, mine, head_dim).permute(1, 2, 0, 3, 4, 5)
    return parts.reshape(len(qkv), batch, ranks * tokens, mine, head_dim).unbind(0)


def _to_tokens(out_BSHD: Tensor, groups: Groups, num_heads: int) -> Tensor:
    """The way back: this rank's tokens, all heads, [B, N, H, D]."""
    if groups.ulysses is None:
        return out_BSHD
    batch, all_tokens, mine, head_dim = out_BSHD.shape
    ranks = groups.degrees.ulysses
    tokens = all_tokens // ranks
    shares = _shares(num_heads, ranks)
    each = batch * tokens * head_dim
    sent = out_BSHD.reshape(batch, ranks, tokens, mine, head_dim).transpose(0, 1).reshape(-1)
    got = sent.new_empty(each * num_heads)
    sizes = [each * share for share in shares]
    dist.all_to_all_single(got, sent, sizes, [each * mine] * ranks, group=groups.ulysses)
    parts = zip(got.split(sizes), shares, strict=True)
    return torch.cat([part.view(batch, tokens, share, head_dim) for part, share in parts], dim=2)


def _ring(q_BSHD: Tensor, kv_2BSHD: Tensor, groups: Groups, ring: ProcessGroup, num_tokens: int) -> Tensor:
    """Keys and values travel once around; what each block gives is merged by its log-sum-exp, in float32.

    The next block is on its way while this one is attended to.
    """
    ranks = dist.get_process_group_ranks(ring)
    here, size, length = groups.ring_rank, len(ranks), kv_2BSHD.shape[2]
    following, preceding = ranks[(here + 1) % size], ranks[(here - 1) % size]
    merged: tuple[Tensor, Tensor] | None = None
    for step in range(size):
        pending, arriving = [], kv_2BSHD
        if step + 1 < size:
            arriving = torch.empty_like(kv_2BSHD)
            send = dist.P2POp(dist.isend, kv_2BSHD, following, ring)
            receive = dist.P2POp(dist.irecv, arriving, preceding, ring)
            pending = dist.batch_isend_irecv([send, receive])
        real = min(max(num_tokens - (here - step) % size * length, 0), length)
        if real:
            out, logsumexp = _attend_with_logsumexp(q_BSHD, *kv_2BSHD[:, :, :real])
            merged = (out.float(), logsumexp) if merged is None else _merge(*merged, out, logsumexp)
        for work in pending:
            work.wait()
        kv_2BSHD = arriving
    assert merged is not None  # a clip has a token, and its block passes every rank
    return merged[0].to(q_BSHD.dtype)


def _merge(out: Tensor, logsumexp: Tensor, other: Tensor, other_logsumexp: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the keys of both."""
    weight = torch.sigmoid(other_logsumexp - logsumexp)
    return out - weight * (out - other), logsumexp - F.logsigmoid(logsumexp - other_logsumexp)


def _attend_with_logsumexp(q_BSHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> tuple[Tensor, Tensor]:
    """Attention [B, S, H, D] and the logarithm of each query's sum of weights, float32 [B, S, H, 1]."""
    q, k, v = (x.transpose(1, 2) for x in (q_BSHD, k_BLHD, v_BLHD))
    if not q.is_cuda:
        out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[:2]
    elif q.dtype == torch.float32:  # CUDA's flash attention takes 16 bits only
        out, logsumexp = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[:2]
        logsumexp = logsumexp[..., : q.shape[2]]  # it is padded
    else:
        out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[:2]
    return out.transpose(1, 2), logsumexp.float().transpose(1, 2).unsqueeze(-1)
