"""Claims: which run works on which row, so that runs over one output share the work. Records alone say what is done."""

import time

from wan_ray.storage.blob import Store
from wan_ray.storage.paths import CLAIMS, attempt_stem
from wan_ray.storage.records import RecordStore
from wan_ray.storage.runs import living_runs

_LOOK_AGAIN_S = 10.0


class Claims:
    """The claims of one run. A claim of a run that is no longer alive may be taken over."""

    def __init__(self, store: Store, run_id: str) -> None:
        self._store = store
        self._records = RecordStore(store)
        self._run_id = run_id
        self._living: set[str] = set()
        self._dead: set[str] = set()
        self._looked_at = float("-inf")

    def take(self, name: str, attempt: int) -> bool:
        """True when the row is this run's to render; False while another living run has it, or it has a record."""
        if not self.win(name, attempt):
            return False
        # Only now, for claims end when records are there: whoever had this one may just have ended the row.
        if self._records.has(name, attempt):
            self.drop(name, attempt)
            return False
        return True

    def win(self, name: str, attempt: int = 1) -> bool:
        """True when the claim is this run's, whether or not what it is for is done; False while a living run has it."""
        turn = 0
        while True:
            # Each taker-over creates the next file, so of any number of them one wins.
            key = _key(name, attempt, turn)
            if self._store.create(key, self._run_id.encode()):
                return True
            owner = self._owner(key)
            if owner == self._run_id:
                return True
            if owner is None or self._lives(owner):
                return False
            turn += 1

    def drop(self, name: str, attempt: int = 1) -> None:
        """The row has its record: whoever claimed it needs no claim any more."""
        turn = 0
        while self._store.exists(key := _key(name, attempt, turn)):
            self._store.delete(key)
            turn += 1

    def _owner(self, key: str) -> str | None:
        """run_id of the claim; None when it was dropped just now."""
        return self._store.get(key).decode() if self._store.exists(key) else None

    def _lives(self, run_id: str) -> bool:
        """Only that a run lives is believed for a while: it may have begun since the last look."""
        if run_id in self._dead:
            return False
        if run_id not in self._living or time.monotonic() - self._looked_at > _LOOK_AGAIN_S:
            self._living, self._looked_at = living_runs(self._store), time.monotonic()
        if run_id not in self._living:
            self._dead.add(run_id)
        return run_id in self._living


def _key(name: str, attempt: int, turn: int) -> str:
    return f"{CLAIMS}/{attempt_stem(name, attempt)}" + (f"+{turn}" if turn else "")
