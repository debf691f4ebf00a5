"""What a solver remembers between steps, as plain values that can be saved."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SolverState:
    """step: steps done. clean: estimates of the clean latents, newest first, at most two.

    start, order: where the last step began and its order, for a solver that corrects it afterwards.
    """

    step: int = 0
    clean: tuple[Tensor, ...] = ()
    start: Tensor | None = None
    order: int = 0
