"""What the operators of a piece of work read and write, and which lines of the model they come from."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.profiler import record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import wan_ray.model

_MODEL = str(Path(wan_ray.model.__path__[0]))
_MARK = "wan_ray.speed|"


class Traffic(TorchDispatchMode):
    """Counts bytes that operators read and write: all inputs and outputs of each, views apart.

    With labels, each operator also stands in a range of its own in torch's profile, named by labelled(): the function
    of wan_ray.model that called it, and its own name.
    """

    def __init__(self, *, labels: bool = False) -> None:
        super().__init__()
        self.moved_bytes = 0
        self.moved_by_label: dict[str, int] = {}
        self._labels = labels

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        label = f"{_MARK}{_calling_function()}|{func.overloadpacket.__name__}" if self._labels else ""
        with record_function(label) if label else nullcontext():
            out = func(*args, **(kwargs or {}))
        inputs, outputs = ([x for x in tree_leaves(tree) if isinstance(x, Tensor)] for tree in ((args, kwargs), out))
        held = {x.untyped_storage()._cdata for x in inputs}
        if func._schema.is_mutable or any(x.untyped_storage()._cdata not in held for x in outputs):
            moved = sum(x.nbytes for x in (*inputs, *outputs))
            self.moved_bytes += moved
            self.moved_by_label[label] = self.moved_by_label.get(label, 0) + moved
        return out


def labelled(name: str) -> tuple[str, str] | None:
    """Function and operator of a range in a profile; None if it is none of ours."""
    if not name.startswith(_MARK):
        return None
    function, _, op = name.removeprefix(_MARK).partition("|")
    return function, op


def _calling_function() -> str:
    """The innermost function of wan_ray.model on the stack."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith(_MODEL):
            return frame.f_code.co_qualname
        frame = frame.f_back
    return ""
