"""What a checkpoint is, by its files' headers: variant, layout, dtypes, sizes, what it lacks, what memory it takes."""

import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import torch
from fsspec import AbstractFileSystem
from torch import nn

from wan_ray.costs.hardware import GPUS
from wan_ray.costs.memory import CONTEXT_BYTES
from wan_ray.errors import CheckpointError
from wan_ray.model.checkpoint import Checkpoint, Layout, Places, find_places
from wan_ray.model.dit import DiT, parameter_dtype
from wan_ray.model.image_encoder import IMAGE_ENCODER_FILE
from wan_ray.model.weights import Shape, TensorFiles, check_shapes, shapes_of
from wan_ray.stages.loader import differing_sizes, variant_of
from wan_ray.storage.blob import failing_as, open_filesystem
from wan_ray.variants import VARIANTS, DiTArchitecture, get_variant
from wan_ray.wording import without_secrets

PartName = Literal["DiT", "umT5", "VAE", "CLIP"]
_PREVENTED = {
    "DiT": "nothing can be rendered",
    "umT5": "no prompt can be encoded",
    "tokenizer": "no prompt can be encoded",
    "VAE": "no latents can be decoded",
    "CLIP": "no image can be encoded, and each row of this model has one",
}
_BESIDE_A_LONE_DIT = "name a folder that has it: --companions here, model.companions in a config"
# By a word in a tensor's name: what a lone file may be, other than a DiT.
_OTHERS = (
    ("lora_", "a LoRA; name it as an adapter of a model: adapters: [{path: ...}]"),
    ("visual.", "CLIP; give the folder that it and a DiT are in"),
    ("vision_model.", "CLIP; give the folder that it and a DiT are in"),
    ("token_embedding.", "a text encoder; give the folder that it and a DiT are in"),
    ("encoder.block.", "a text encoder; give the folder that it and a DiT are in"),
    ("decoder.", "a VAE; give the folder that it and a DiT are in"),
)
# Of a weight file at a URL; headers stand at the beginning and in .pth at the end too, and take a tenth of this.
_HEAD_BYTES, _TAIL_BYTES = 4 << 20, 1 << 20
_NEEDED = (".safetensors", ".pth", ".json")
_LISTED = 5
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One model of a checkpoint. stored: parameters by the files' dtypes, of the part of it that is run.

    gpu_bytes: as it is loaded on a GPU, by default in bfloat16 but for what must be float32; cpu_bytes: in float32.
    fault: why it cannot be loaded.
    """

    name: PartName
    num_files: int
    stored: Mapping[str, int]
    gpu_bytes: int
    cpu_bytes: int
    fault: str | None

    @property
    def num_parameters(self) -> int:
        """In all dtypes."""
        return sum(self.stored.values())


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was found. variants: the released models of exactly these sizes, likeliest first.

    closest is the released model most like it, and differing what sizes are not its own. missing: by part, what was
    looked for. ignored: what config.json says and the tensors contradict.
    """

    source: str
    layout: Layout
    architecture: DiTArchitecture | None
    variants: tuple[str, ...]
    closest: str | None
    differing: tuple[str, ...]
    parts: tuple[Part, ...]
    missing: Mapping[str, str]
    ignored: tuple[str, ...]

    @property
    def is_usable(self) -> bool:
        """Whether all that rendering takes is there and fits."""
        return not self.missing and not any(part.fault for part in self.parts)

    @property
    def resident_bytes(self) -> int:
        """Of all stages on one GPU; where images or videos are encoded, that stage has a VAE of its own."""
        encoding = self.architecture is not None and _task(self.architecture) != "t2v"
        return sum(part.gpu_bytes * (2 if part.name == "VAE" and encoding else 1) for part in self.parts)


def inspect_checkpoint(source: str, companions: str | None = None) -> Inspection:
    """What is at a path or fsspec URL, and at companions beside a lone DiT. Weights are neither loaded nor fetched.

    CheckpointError when it holds no part of a Wan2.1 model.
    """
    with _local(source) as path, _local(companions or "") as others:

        def told(message: str) -> str:
            """With the URL for the copy of it, which nobody knows of."""
            return message.replace(str(path), without_secrets(source)) if "://" in source else message

        try:
            found = _inspected(path, others if companions else None, source=without_secrets(source))
        except CheckpointError as error:
            raise CheckpointError(told(str(error))) from None
        return replace(
            found,
            missing={part: told(why) for part, why in found.missing.items()},
            parts=tuple(replace(part, fault=part.fault and told(part.fault)) for part in found.parts),
        )


def _inspected(path: Path, companions: Path | None, *, source: str) -> Inspection:
    places = find_places(path, companions)
    if places.layout == "single file":
        _refuse_other_models(places.dit)
    checkpoint, missing = _gathered(places)
    parts, architecture = _parts(checkpoint)
    if not parts:
        raise CheckpointError(_nothing(path))
    variants, closest, differing, ignored = (), None, [], ()
    if architecture is not None:
        if architecture.image_tokens and not checkpoint.image_encoder_files:
            missing["CLIP"] = f"neither {IMAGE_ENCODER_FILE!r} nor a folder image_encoder is there"
        variants = _variants(architecture, source)
        closest, sizes = _closest(architecture)
        differing = differing_sizes(architecture, sizes)
        ignored = _ignored(checkpoint.dit_config, architecture)
    return Inspection(
        source=source,
        layout=places.layout,
        architecture=architecture,
        variants=variants,
        closest=closest,
        differing=tuple(differing),
        parts=parts,
        missing=missing,
        ignored=ignored,
    )


def _gathered(places: Places) -> tuple[Checkpoint, dict[str, str]]:
    """The checkpoint as far as it is there, and why the rest is not."""
    missing: dict[str, str] = {}

    def found(part: str, find: Callable[[], tuple[Path, ...]]) -> tuple[Path, ...]:
        try:
            return find()
        except CheckpointError as error:
            missing[part] = _BESIDE_A_LONE_DIT if places.root is None else str(error)
            return ()

    checkpoint = Checkpoint(
        layout=places.layout,
        dit_files=found("DiT", places.dit_files),
        dit_config=places.dit_config(),
        text_encoder_files=found("umT5", places.text_encoder_files),
        vae_files=found("VAE", places.vae_files),
        image_encoder_files=places.image_encoder_files() if places.root else (),
        tokenizer=places.dit,  # not read here
    )
    found("tokenizer", lambda: (places.tokenizer_file(),))
    return checkpoint, missing


def _parts(checkpoint: Checkpoint) -> tuple[tuple[Part, ...], DiTArchitecture | None]:
    """The models whose files are there, and the sizes of the denoiser where its tensors tell them."""
    c, parts, architecture = checkpoint, [], None
    found: tuple[tuple[PartName, Sequence[Path], Callable[[], TensorFiles], Callable[[], nn.Module]], ...] = (
        ("DiT", c.dit_files, c.open_dit, lambda: c.empty_dit(device=_CPU)[0]),
        ("umT5", c.text_encoder_files, c.open_text_encoder, lambda: c.empty_text_encoder()[0]),
        ("VAE", c.vae_files, c.open_vae, lambda: c.empty_vae()[0]),
        ("CLIP", c.image_encoder_files, c.open_image_encoder, lambda: c.empty_image_encoder()[0]),
    )
    for name, files, opened, built in found:
        if not files:
            continue
        fault, shapes, dtypes = None, {}, {}
        try:
            tensors = opened()
            shapes, dtypes = tensors.shapes, tensors.dtypes
            model = built()
            architecture = model.architecture if isinstance(model, DiT) else architecture
            check_shapes(shapes_of(model), shapes, what=name)
        except CheckpointError as error:
            fault = str(error)
        parts.append(_part(name, shapes, dtypes, num_files=len(files), fault=fault))
    return tuple(parts), architecture


def _part(
    name: PartName, shapes: Mapping[str, Shape], dtypes: Mapping[str, str], *, num_files: int, fault: str | None
) -> Part:
    stored: Counter[str] = Counter()
    gpu_bytes = 0
    for tensor, shape in shapes.items():
        stored[dtypes[tensor]] += math.prod(shape)
        # As StageLoader has them: the VAE and CLIP always compute in float32.
        loaded = torch.float32 if name in ("VAE", "CLIP") else torch.bfloat16
        gpu_bytes += math.prod(shape) * (parameter_dtype(tensor, loaded) if name == "DiT" else loaded).itemsize
    return Part(
        name=name,
        num_files=num_files,
        stored=dict(stored.most_common()),
        gpu_bytes=gpu_bytes,
        cpu_bytes=stored.total() * torch.float32.itemsize,
        fault=fault,
    )


def _refuse_other_models(file: Path) -> None:
    """Raise CheckpointError when a lone file holds something else than a DiT."""
    names = TensorFiles.open((file,)).shapes
    what = next((what for word, what in _OTHERS if any(word in name for name in names)), None)
    if what is None and not any(name.endswith("patch_embedding.weight") for name in names):
        shown = ", ".join(map(repr, list(names)[:_LISTED]))
        what = f"no model of Wan2.1: it has {len(names)} tensors" + (f", such as {shown}" if names else "")
    if what is not None:
        raise CheckpointError(f"{str(file)!r} is {what}")


def _nothing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    has = f"it has {', '.join(map(repr, names[:_LISTED]))}{more}" if names else "it is empty"
    return (
        f"{str(folder)!r} holds no part of a Wan2.1 checkpoint: {has}; give a folder of the release, a -Diffusers "
        "folder or a DiT .safetensors file"
    )


def _variants(architecture: DiTArchitecture, source: str) -> tuple[str, ...]:
    """The released models of these sizes; one whose resolution is in the checkpoint's name comes first."""
    same = [variant.name for variant in VARIANTS.values() if variant.architecture == architecture]
    return tuple(sorted(same, key=lambda name: not _is_named(name, source)))


def _is_named(variant: str, source: str) -> bool:
    return variant.rpartition("-")[2].upper() in source.upper()


def _task(architecture: DiTArchitecture) -> str:
    return get_variant(variant_of(architecture)).tasks[0]


def _closest(architecture: DiTArchitecture) -> tuple[str, DiTArchitecture]:
    """The released model that this one is most like: of its kind, with fewest sizes that differ, as wide as it."""
    released = [(v.name, v.architecture) for v in VARIANTS.values() if v.architecture is not None]
    return min(
        released,
        key=lambda one: (
            _task(one[1]) != _task(architecture),
            len(differing_sizes(architecture, one[1])),
            abs(one[1].dim - architecture.dim),
        ),
    )


def _ignored(config: Path | None, architecture: DiTArchitecture) -> tuple[str, ...]:
    """What a config.json says of the denoiser and its tensors contradict: some of VACE's were released so."""
    if config is None or not config.is_file():
        return ()
    try:
        said = json.loads(config.read_text(encoding="utf-8"))
    except ValueError:
        return ("it is not JSON",)
    a = architecture
    true = {"model_type": _task(a), "dim": a.dim, "ffn_dim": a.ffn_dim, "num_layers": a.num_layers}
    true |= {"in_dim": a.in_channels, "in_channels": a.in_channels, "num_heads": a.num_heads}
    true |= {"num_attention_heads": a.num_heads, "vace_layers": list(a.vace_layers)}
    said = said if isinstance(said, dict) else {}
    return tuple(
        f"{key} {said[key]!r} instead of {true[key]!r}" for key in true if said.get(key, true[key]) != true[key]
    )


def describe(found: Inspection) -> str:
    """The findings as text, one to a line, and a table of the parts."""
    num_files = next((part.num_files for part in found.parts if part.name == "DiT"), 0)
    layout = {"released": "a folder as released", "diffusers": "a -Diffusers folder", "single file": "a lone DiT file"}
    lines = [
        f"checkpoint  {found.source}",
        f"variant     {_variant_in_words(found)}",
        f"layout      {layout[found.layout]}" + (f", the DiT in {num_files} files" if num_files > 1 else ""),
    ]
    if found.ignored:
        lines.append(f"config      ignored where the tensors say otherwise: {'; '.join(found.ignored)}")
    lines += ["", f"{'part':<6}{'parameters':>16}  {'in the files':<32}{'on a GPU':>10}{'on a CPU':>12}"]
    lines += [
        f"{part.name:<6}{part.num_parameters:>16,}  {_dtypes_in_words(part.stored):<32}"
        f"{_gigabytes(part.gpu_bytes):>10}{_gigabytes(part.cpu_bytes):>12}"
        for part in found.parts
    ]
    whole = [("all stages", found.resident_bytes)] if found.is_usable else []
    alone = [("the DiT alone", part.gpu_bytes) for part in found.parts if part.name == "DiT"]
    held = "; ".join(f"{what} {_gigabytes(size)}, held by {_gpus(size)}" for what, size in (*whole, *alone))
    lines += ["", f"memory      {held or 'without a DiT, that is not known'}"]
    lines += ["            (weights in bfloat16, in float32 where that decides; `wan-ray plan` adds what a clip takes)"]
    lines += [f"broken      {part.name}: {part.fault}" for part in found.parts if part.fault]
    lines += [f"missing     {part}: {_PREVENTED[part]}; {why}" for part, why in found.missing.items()]
    return "\n".join(lines)


def _variant_in_words(found: Inspection) -> str:
    if found.variants:
        first, *others = found.variants
        if others and _is_named(first, found.source):
            return f"{first} by its name; {' and '.join(others)} has the same sizes"
        return f"{' or '.join(found.variants)}" + (", which have the same sizes" if others else "")
    if found.architecture is None:
        return "unknown"
    usable = variant_of(found.architecture)
    return f"none released; {usable!r} takes any sizes. Closest to {found.closest}: {', '.join(found.differing)}"


def _dtypes_in_words(stored: Mapping[str, int]) -> str:
    total = sum(stored.values())
    return ", ".join(f"{dtype} {count / total:.1%}" if len(stored) > 1 else dtype for dtype, count in stored.items())


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.2f} MB"


def _gpus(num_bytes: int) -> str:
    fitting = [gpu.memory for gpu in GPUS.values() if num_bytes + CONTEXT_BYTES <= gpu.memory]
    return f"a GPU of {min(fitting) / 1e9:.0f} GB or more" if fitting else "no GPU: shard or offload them"


@contextmanager
def _local(source: str) -> Iterator[Path]:
    """A path as it is; of a URL, a folder or file like it with holes where only weights are."""
    if "://" not in source:
        yield Path(source).expanduser()
        return
    filesystem, root = open_filesystem(source.rstrip("/"))
    name = without_secrets(source)
    with tempfile.TemporaryDirectory(prefix="wan-ray-") as folder:
        target = Path(folder) / Path(root).name
        with failing_as(CheckpointError, f"cannot read the checkpoint {name!r}"):
            listed = filesystem.find(root, detail=True) if filesystem.isdir(root) else {root: filesystem.info(root)}
            for path, info in cast(dict[str, Mapping[str, int]], listed).items():
                if str(path).endswith(_NEEDED):
                    _copy_ends(
                        filesystem, str(path), int(info["size"]), target / str(path).removeprefix(root).lstrip("/")
                    )
        if not target.exists():
            raise CheckpointError(f"checkpoint {name!r} holds no files that end in {', '.join(_NEEDED)}")
        yield target


def _copy_ends(filesystem: AbstractFileSystem, path: str, size_bytes: int, copy: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    # Read as a stream: a server that gives no parts would answer a request for one with the whole file.
    with filesystem.open(path, "rb", block_size=_TAIL_BYTES) as source, copy.open("wb") as file:
        while chunk := source.read(_HEAD_BYTES - file.tell()):
            file.write(cast(bytes, chunk))
        if path.endswith(".pth") and size_bytes > _HEAD_BYTES:
            tail = max(size_bytes - _TAIL_BYTES, _HEAD_BYTES)
            source.seek(tail)
            file.seek(tail)
            file.write(cast(bytes, source.read(size_bytes - tail)))
        file.truncate(size_bytes)
