"""Prompts: what language models were asked for and answered, kept beside the output so that no run pays twice."""

import threading
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from wan_ray.errors import StorageError
from wan_ray.storage.blob import Store
from wan_ray.storage.claims import Claims
from wan_ray.storage.paths import PROMPTS, prompt_claim


class KeptReply(BaseModel):
    """A model's reply as it came, who gave it, and the prompt it was given for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    num_tokens: int
    extender: str
    model: str
    prompt: str
    settings: Mapping[str, JsonValue] = {}


class PromptCache:
    """Replies by a hash of all that was asked. Whoever claims a key asks; all others wait for what comes of it.

    Claims are of runs, and those of a dead run may be taken over; within a process a key is claimed once at a time.
    """

    def __init__(self, store: Store, run_id: str) -> None:
        self._store = store
        self._claims = Claims(store, run_id)
        self._mine: set[str] = set()
        self._lock = threading.Lock()

    def get(self, key: str) -> KeptReply | None:
        """The reply, if there is one; StorageError when what lies there is none."""
        place = _place(key)
        if not self._store.exists(place):
            return None
        try:
            return KeptReply.model_validate_json(self._store.get(place))
        except ValidationError as error:
            raise StorageError(f"{self._store.location(place)!r} is no reply of this version: {error}") from error

    def claim(self, key: str) -> bool:
        """True when the caller is to ask, put() what comes, and then drop(); False while another one does."""
        with self._lock:
            if key in self._mine:
                return False
            self._mine.add(key)
        won = False
        try:
            won = self._claims.win(prompt_claim(key))
        finally:
            if not won:
                self._forget(key)
        return won

    def put(self, key: str, reply: KeptReply) -> KeptReply:
        """Keeps the reply; the one that stands, which is the first."""
        kept = self._store.create(_place(key), reply.model_dump_json(indent=1).encode())
        return reply if kept else self.get(key) or reply

    def drop(self, key: str) -> None:
        """Gives up the claim."""
        self._claims.drop(prompt_claim(key))
        self._forget(key)

    def _forget(self, key: str) -> None:
        with self._lock:
            self._mine.discard(key)


def _place(key: str) -> str:
    return f"{PROMPTS}/{key}.json"
