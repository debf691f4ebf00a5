"""Step cache: a step in which the first block adds nearly what it added before takes over what the others added then.

The first-block cache of ParaAttention and diffusers, with one decision a step for both passes of guidance, so that all
ranks of any layout take the same. B: batch, N: tokens, D: width.
"""

from collections.abc import Callable

from torch import Tensor

from wan_ray.model.attention import Layout


class StepCache:
    """One clip's decisions. threshold: the relative change of what the first block adds below which a step is not
    computed.

    agree hands rank 0's decision to all ranks of a gang; reuses is that on the step at hand. num_computed counts the
    computed ones of num_steps.
    """

    def __init__(self, threshold: float, *, agree: Callable[[int], int] = lambda decision: decision) -> None:
        self._threshold = threshold
        self._agree = agree
        self.reuses = False
        self._first_BND: Tensor | None = None
        self.num_steps = 0
        self.num_computed = 0

    def passes(self, *, follows: bool = False) -> "PassCache":
        """One pass's part. One that follows, on the same device, takes the decision of the one that is computed before
        it."""
        return PassCache(self, follows=follows)

    def decide(self, first_BND: Tensor, layout: Layout) -> bool:
        """Whether this step takes over what was computed before, by what its first block added to the stream."""
        self.reuses = bool(self._agree(int(self._is_small_change(first_BND, layout))))
        self.num_steps += 1
        if not self.reuses:
            self.num_computed += 1
            self._first_BND = first_BND
        return self.reuses

    def forget(self) -> None:
        """Have the next step computed."""
        self._first_BND = None

    def _is_small_change(self, first_BND: Tensor, layout: Layout) -> bool:
        if self._first_BND is None:
            return False
        before_BND = self._first_BND.float()
        change = layout.token_mean((first_BND.float() - before_BND).abs().mean(-1))
        before = layout.token_mean(before_BND.abs().mean(-1))
        return bool(change < self._threshold * before)  # NaN is not


class PassCache:
    """What all blocks but the first added to the stream in one pass's last computed step."""

    def __init__(self, steps: StepCache, *, follows: bool) -> None:
        self._steps = steps
        self._follows = follows
        self._rest_BND: Tensor | None = None

    def rest(self, first_BND: Tensor, layout: Layout) -> Tensor | None:
        """To be added after the first block, which added this; None when the blocks are to be computed, and kept."""
        reuses = self._steps.reuses if self._follows else self._steps.decide(first_BND, layout)
        return self._rest_BND if reuses else None

    def keep(self, rest_BND: Tensor) -> None:
        """What the other blocks added."""
        self._rest_BND = rest_BND
