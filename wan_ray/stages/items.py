"""What flows between stages: an item, and how it crosses a process boundary (JSON, safetensors, plain bytes).

Torch is imported where tensors are, so that the processes that read and publish stay small.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Self, TypedDict

from pydantic import JsonValue

from wan_ray.resolved import ResolvedRequest

if TYPE_CHECKING:
    from torch import Tensor


_HEAD = (
    "name",
    "id",
    "row",
    "prompt",
    "attempt",
    "content",
    "extra",
    "extension",
    "inputs",
    "seconds",
    "weights",
    "rendered_on",
)


class Row(TypedDict):
    """An item as three columns of a dataset."""

    item: str
    tensors: bytes
    clip: bytes


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why an item has no clip."""

    stage: str
    type: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Clip:
    """An encoded result: an MP4, or a PNG for task t2i."""

    data: bytes
    suffix: str
    num_frames: int


@dataclass(frozen=True, kw_only=True)
class Item:
    """One manifest row on its way. name, attempt and content are its record's; request is None when it broke a rule.

    seconds: per stage so far. weights: fingerprints of the model parts used. rendered_on: the DiT's device, dtype,
    kernels and layout of ranks, and what was done for want of memory. tensors: what the next stage needs.
    inputs: which frames of its sources it shows, and where their pixels went.
    prompt: the row's own, which the request's may be a rewrite of. extension: how that came about.
    """

    name: str
    id: str
    row: int | None
    request: ResolvedRequest | None
    prompt: str | None
    attempt: int = 1
    content: str | None = None
    extra: Mapping[str, JsonValue] = field(default_factory=dict)
    extension: Mapping[str, JsonValue] = field(default_factory=dict)
    inputs: Mapping[str, JsonValue] = field(default_factory=dict)
    failure: Failure | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    rendered_on: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, "Tensor"] = field(default_factory=dict)
    clip: Clip | None = None

    @property
    def sound(self) -> ResolvedRequest:
        """The request of an item that has not failed."""
        assert self.request is not None and self.failure is None
        return self.request

    def failed(self, stage: str, error: BaseException) -> Self:
        """This item with its failure noted and its payload dropped."""
        failure = Failure(stage=stage, type=type(error).__name__, message=(str(error) or repr(error))[:2000])
        return replace(self, failure=failure, tensors={}, clip=None)

    def to_row(self) -> Row:
        """Columns that hold everything."""
        head = {f: getattr(self, f) for f in _HEAD}
        head["request"] = asdict(self.request) if self.request else None
        head["failure"] = asdict(self.failure) if self.failure else None
        if self.clip:
            head["clip"] = {"suffix": self.clip.suffix, "num_frames": self.clip.num_frames}
        return {
            "item": json.dumps(head, ensure_ascii=False),
            "tensors": _pack(self.tensors) if self.tensors else b"",
            "clip": self.clip.data if self.clip else b"",
        }

    @classmethod
    def from_row(cls, row: Row) -> Self:
        """The item that to_row wrote."""
        head = json.loads(row["item"])
        clip = head.pop("clip", None)
        head["request"] = ResolvedRequest(**head["request"]) if head["request"] else None
        head["failure"] = Failure(**head["failure"]) if head["failure"] else None
        return cls(
            **head,
            tensors=_unpack(row["tensors"]) if row["tensors"] else {},
            clip=Clip(data=row["clip"], **clip) if clip else None,
        )


def _pack(tensors: Mapping[str, "Tensor"]) -> bytes:
    import torch
    from safetensors.torch import save

    # Copies, for save() refuses tensors that share memory, as the embeddings of equal texts do.
    return save({name: t.clone(memory_format=torch.contiguous_format) for name, t in tensors.items()})


def _unpack(data: bytes) -> dict[str, "Tensor"]:
    from safetensors.torch import load

    return load(data)
