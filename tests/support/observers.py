"""An observer of a run to start from."""

from wan_ray.graph.board import Snapshot
from wan_ray.storage.records import Record


class Nobody:
    """Sees nothing; a test overrides what it wants to see."""

    def begin(self, *, num_rows: int, num_done: int) -> None:
        pass

    def waiting(self, num_rows: int) -> None:
        pass

    def ended(self, record: Record) -> None:
        pass

    def tick(self, snapshot: Snapshot) -> None:
        pass
