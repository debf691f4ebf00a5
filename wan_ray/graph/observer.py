"""Observer: who watches a run."""

from typing import Protocol

from wan_ray.graph.board import Snapshot
from wan_ray.storage.records import Record


class Observer(Protocol):
    """The command line's display, the metrics, or nobody."""

    def begin(self, *, num_rows: int, num_done: int) -> None:
        """The run is about to render num_rows; num_done others have records already."""

    def tick(self, snapshot: Snapshot) -> None:
        """Called about twice a second from a thread: what happened, and what is worked on."""

    def ended(self, record: Record) -> None:
        """A row has its record."""

    def waiting(self, num_rows: int) -> None:
        """Nothing is left to do but so many rows that another run has claimed."""
