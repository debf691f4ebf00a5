"""Degrees: along which axes the ranks of one gang share a clip's work. Plain numbers, no torch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Degrees:
    """cfg x ulysses x ring ranks render one clip together.

    cfg: 2 runs the conditional and the unconditional pass at once. ulysses: ranks that exchange tokens for heads, best
    inside a node. ring: ranks that pass keys and values on, best across nodes. Rank numbers count ulysses first, then
    ring, then cfg, so Ulysses ranks are adjacent.
    """

    cfg: int = 1
    ulysses: int = 1
    ring: int = 1

    @property
    def world_size(self) -> int:
        """Ranks of the gang."""
        return self.cfg * self.ulysses * self.ring

    @property
    def sequence(self) -> int:
        """Ranks among which the tokens of one pass are divided."""
        return self.ulysses * self.ring

    def __str__(self) -> str:
        return f"cfg{self.cfg} x ulysses{self.ulysses} x ring{self.ring}"
