"""Shelf: what is saved of an unfinished clip, in a leader's hands and in the store."""

import logging
from concurrent.futures import Future, ThreadPoolExecutor

from wan_ray.errors import StorageError
from wan_ray.stages.items import Item
from wan_ray.storage.blob import Store
from wan_ray.storage.paths import progress_key

logger = logging.getLogger(__name__)


class Shelf:
    """What is saved of one clip at a time: here, and under the output, for whoever takes the row next.

    It is saved work: a store that refuses costs that work, and no more.
    """

    def __init__(self, output: str | None) -> None:
        self._store = Store(output) if output is not None else None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="wan-ray-save")
        self._writing: Future[None] | None = None
        self._key = ""
        self._written: bytes | None = None
        self.latest: bytes | None = None

    def find(self, item: Item) -> bytes | None:
        """What another has saved of the clip; from here on this shelf is that clip's."""
        self.flush()
        self._key, self.latest = progress_key(item.name), None
        try:
            if self._store is not None and self._store.exists(self._key):
                self.latest = self._store.get(self._key)
        except StorageError as error:
            logger.warning("starting at step 0 request_id=%s reason=%s", item.id, error)
        self._written = self.latest
        return self.latest

    def put(self, data: bytes | None) -> None:
        """Keep this. It is stored in the background, unless the store is still busy with what was put before."""
        if data is None:
            return
        self.latest = data
        if self._store is not None and (self._writing is None or self._writing.done()):
            self._settle()
            self._written = data
            self._writing = self._writer.submit(self._store.put, self._key, data)

    def flush(self) -> None:
        """Return when the latest is stored."""
        self._settle()
        if self.latest is not self._written:
            self.put(self.latest)
            self._settle()

    def _settle(self) -> None:
        try:
            if self._writing is not None:
                self._writing.result()
        except StorageError as error:
            logger.warning("could not save a clip's progress: %s", error)
        self._writing = None
