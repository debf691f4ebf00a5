"""Tensors in files, read one at a time: safetensors (one file, shards) and PyTorch archives, never pickled code."""

import hashlib
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from wan_ray.errors import CheckpointError

Shape = tuple[int, ...]
# safetensors' names of dtypes; what is not among them keeps its name.
_DTYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "I8": "int8", "U8": "uint8"},
}
_LFS_POINTER = b"version https://git-lfs"
_NAMED = 5  # tensors listed in an error before it says how many more


class TensorFiles:
    """The tensors of one model part over one or more files: shapes and dtypes at once, values on demand.

    dtypes are of the files, in torch's words; they are for people, and where tensors are made of others, absent.
    """

    def __init__(
        self,
        shapes: Mapping[str, Shape],
        read: Callable[[str], Tensor],
        fingerprint: str,
        dtypes: Mapping[str, str] | None = None,
    ) -> None:
        self.shapes = dict(shapes)
        self.read = read
        self.fingerprint = fingerprint
        self.dtypes = dict(dtypes or {})

    @classmethod
    def open(cls, files: Sequence[Path]) -> Self:
        """CheckpointError names a file that is missing, cut short or of another kind."""
        for file in files:
            if not file.is_file():
                raise CheckpointError(f"weight file {str(file)!r} is missing")
            with file.open("rb") as opened:
                if opened.read(len(_LFS_POINTER)) == _LFS_POINTER:
                    raise CheckpointError(f"weight file {str(file)!r} is a Git LFS pointer to one; run 'git lfs pull'")
        if len(files) == 1 and files[0].suffix in (".pth", ".pt", ".bin"):
            return cls._open_archive(files[0])
        return cls._open_safetensors(files)

    @classmethod
    def _open_safetensors(cls, files: Sequence[Path]) -> Self:
        homes: dict[str, Path] = {}
        shapes, dtypes, digest = {}, {}, hashlib.sha256()
        for file in files:
            try:
                # "np" maps the file for reading alone; "pt" asks for as much memory, which a large file may not get.
                header = safe_open(file, "np")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"weight file {str(file)!r} cannot be read as safetensors: {error}") from None
            for name in header.keys():  # noqa: SIM118  (not a mapping)
                if name in homes:
                    raise CheckpointError(f"tensor {name!r} is in {str(file)!r} and in a file before it; remove one")
                homes[name], found = file, header.get_slice(name)
                shapes[name] = tuple(found.get_shape())
                dtypes[name] = _DTYPES.get(found.get_dtype(), found.get_dtype())
            _digest_safetensors_(digest, file)
        return cls(shapes, _reader(homes), digest.hexdigest()[:32], dtypes)

    @classmethod
    def _open_archive(cls, file: Path) -> Self:
        where = f"weight file {str(file)!r}"
        if not zipfile.is_zipfile(file):
            raise CheckpointError(f"{where} is cut short, or no PyTorch archive; download it again")
        try:
            tensors = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        except pickle.UnpicklingError:
            # torch's own message advises weights_only=False, which runs the file's code.
            raise CheckpointError(f"{where} holds code or objects, and only tensors are read; convert it") from None
        except (RuntimeError, OSError, ValueError) as error:
            raise CheckpointError(f"{where} cannot be read as tensors: {error}") from None
        if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
            raise CheckpointError(f"{where} holds {type(tensors).__name__}, not a plain table of tensors; convert it")
        with zipfile.ZipFile(file) as archive:
            # Names without the folder that all entries are in, which torch.save() calls as the file.
            entries = "".join(f"{e.filename.partition('/')[2]}:{e.file_size}:{e.CRC};" for e in archive.infolist())
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
        fingerprint = hashlib.sha256(entries.encode()).hexdigest()[:32]
        return cls(shapes, lambda name: tensors[name], fingerprint, dtypes)

    def renamed(self, rename: Callable[[str], str]) -> "TensorFiles":
        """The same tensors under other names."""
        old = {rename(name): name for name in self.shapes}
        shapes = {new: self.shapes[name] for new, name in old.items()}
        dtypes = {new: self.dtypes[name] for new, name in old.items() if name in self.dtypes}
        return TensorFiles(shapes, lambda name: self.read(old[name]), self.fingerprint, dtypes)

    def without(self, unwanted: Callable[[str], bool]) -> "TensorFiles":
        """Without the tensors of a predicate."""
        kept = {name: shape for name, shape in self.shapes.items() if not unwanted(name)}
        return TensorFiles(kept, self.read, self.fingerprint, self.dtypes)


def load_(
    model: nn.Module,
    tensors: TensorFiles,
    *,
    device: torch.device,
    dtype_of: Callable[[str], torch.dtype],
    what: str,
    then: Callable[[str, nn.Module], None] | None = None,
) -> None:
    """Fill a model built on the meta device, parameter by parameter: never a second full copy in memory.

    then is called with each parameter's name and module as soon as it is filled, and may put another in its place.
    CheckpointError names missing, extra and misshaped tensors. Frozen: gradients are off.
    """
    check_shapes(shapes_of(model), tensors.shapes, what=what)
    owners: dict[int, list[tuple[nn.Module, str]]] = {}  # of one parameter: every module that shares it
    for module in model.modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((module, leaf))
    for name, meta in list(model.named_parameters()):
        value = torch.empty(meta.shape, dtype=dtype_of(name), device=device)
        value.copy_(tensors.read(name))
        loaded = nn.Parameter(value, requires_grad=False)
        for module, leaf in owners[id(meta)]:
            setattr(module, leaf, loaded)
            if then is not None:
                then(name, module)


def shapes_of(model: nn.Module) -> dict[str, Shape]:
    """Shape of every parameter, one that is shared under its first name only."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def check_shapes(wanted: Mapping[str, Shape], found: Mapping[str, Shape], *, what: str) -> None:
    """Raise CheckpointError when the tensors found are not those the model has."""
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    misshaped = [
        f"{name} {list(found[name])} instead of {list(wanted[name])}"
        for name in wanted
        if name in found and tuple(found[name]) != tuple(wanted[name])
    ]
    parts = [_listed(k, v) for k, v in (("missing", missing), ("extra", extra), ("misshaped", misshaped)) if v]
    if parts:
        raise CheckpointError(f"the {what} does not fit its weights: {'; '.join(parts)}")


def _reader(homes: Mapping[str, Path]) -> Callable[[str], Tensor]:
    """Reads a tensor from its safetensors file, opened when the first one is asked for."""
    opened = {}

    def read(name: str) -> Tensor:
        file = homes[name]
        if file not in opened:
            try:
                opened[file] = safe_open(file, "pt")
            except RuntimeError as error:
                raise CheckpointError(
                    f"weight file {str(file)!r} cannot be mapped into memory: {error}; give more memory, or shards"
                ) from None
        return opened[file].get_tensor(name)

    return read


def _listed(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{kind} {', '.join(names[:_NAMED])}{more}"


def _digest_safetensors_(digest: "hashlib._Hash", file: Path) -> None:
    """Add the header and both ends of every tensor: quick on 30 GB, and any fine-tune changes it."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = stream.read(length)
        digest.update(header)
        spans = [entry["data_offsets"] for name, entry in _json(header).items() if name != "__metadata__"]
        for begin, end in sorted(spans):
            for offset in (begin, max(begin, end - 256)):
                stream.seek(8 + length + offset)
                digest.update(stream.read(min(256, end - begin)))


def _json(header: bytes) -> dict[str, dict[str, list[int]]]:
    return json.loads(header)
