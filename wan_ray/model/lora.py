"""LoRA adapters: found in any published spelling, checked against a model, merged while its weights are read.

Low-rank pairs and full differences are read; LoHa, LoKr and DoRA are not.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from wan_ray.errors import CheckpointError
from wan_ray.model.key_maps import dit_name_from_diffusers
from wan_ray.model.weights import Shape, TensorFiles

logger = logging.getLogger(__name__)

_NAMED = 5  # keys listed in an error before it says how many more
_PREFIX = re.compile(r"(?:base_model\.model\.|model\.|transformer\.|diffusion_model\.)*")
# PEFT puts the adapter's name before the last word: lora_A.default.weight.
_KEY = re.compile(
    r"""(?P<module> .+?) \.
        (?: (?P<down> lora_(?:A|down) (?:\.[^.]+)? \.weight)
          | (?P<up> lora_(?:B|up) (?:\.[^.]+)? \.weight)
          | (?P<up_bias> lora_B (?:\.[^.]+)? \.bias)
          | (?P<alpha> alpha) | (?P<diff> diff) | (?P<diff_b> diff_b) | (?P<diff_m> diff_m))""",
    re.VERBOSE,
)
_LOW_RANK = {"down", "up", "up_bias"}
_FULL = {"diff": "weight", "diff_b": "bias", "diff_m": "modulation"}
# What only some Wan2.1 models have: a mark of it in released names, and in an adapter's keys.
_PARTS = {
    "img": re.compile(r"[kv]_img|img_emb|add_[kv]_proj|norm_added_k|image_embedder"),
    "vace": re.compile(r"vace_"),
}

_ADVICE = "use a LoRA made for this model (LoHa, LoKr and DoRA are not read)"

DeclaredFactor = Callable[[str, int], float]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A .safetensors file of differences to a model's weights, and how much of them is wanted."""

    path: Path
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Term:
    """What an adapter adds to one tensor: a full difference, or an up times a down matrix; keys name them."""

    keys: tuple[str, ...]
    factor: float


@dataclass(frozen=True, kw_only=True)
class FittedAdapter:
    """An adapter that fits a model. terms: by released tensor name. skipped: keys for parts this model lacks."""

    files: TensorFiles
    terms: Mapping[str, Sequence[Term]]
    skipped: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Changes with the adapter's content and with the strength of any of its terms."""
        factors = ";".join(f"{name}:{term.factor!r}" for name, terms in self.terms.items() for term in terms)
        return _digest(self.files.fingerprint, factors)

    def add_to(self, name: str, value: Tensor) -> Tensor:
        """A float32 tensor plus this adapter's terms for it, computed where the tensor lies."""
        for term in self.terms.get(name, ()):
            first, *rest = (self.files.read(key).to(value) for key in term.keys)
            change = first.flatten(1) @ rest[0].flatten(1) if rest else first
            value = value + term.factor * change.reshape(value.shape)
        return value


@dataclass(frozen=True, kw_only=True)
class _Module:
    """An adapter's keys for one module by kind, and what the adapter calls the module."""

    spelling: str
    keys: dict[str, str]


def merged(tensors: TensorFiles, adapters: Sequence[FittedAdapter], *, device: torch.device) -> TensorFiles:
    """The tensors with all adapters added as they are read, in float32 on the device: rounded once, when stored.

    The fingerprint tells the base, the adapters and their strengths; without adapters nothing changes.
    """
    if not adapters:
        return tensors
    changed = {name for adapter in adapters for name in adapter.terms}

    def read(name: str) -> Tensor:
        value = tensors.read(name)
        if name not in changed:
            return value
        value = value.to(device, torch.float32)
        for adapter in adapters:
            value = adapter.add_to(name, value)
        return value

    fingerprint = _digest(tensors.fingerprint, *(adapter.fingerprint for adapter in adapters))
    return TensorFiles(tensors.shapes, read, fingerprint)


def fit(adapter: Adapter, shapes: Mapping[str, Shape]) -> FittedAdapter:
    """The adapter matched with a model's tensors, by released name; reads no weights but alphas.

    Names may be the released, diffusers' or kohya's. Image and VACE keys are skipped where the model has no such part:
    I2V adapters serve T2V models too. CheckpointError names any other key without a place, half a pair, and
    a shape that does not fit: half an adapter looks like a weak one.
    """
    where = f"adapter {str(adapter.path)!r}"
    if adapter.path.suffix != ".safetensors":
        raise CheckpointError(f"{where} is not a .safetensors file; convert it")
    files = TensorFiles.open([adapter.path])
    modules, skipped, problems = _modules(files, shapes)
    if not modules:
        example = f"; its keys are like {next(iter(files.shapes))!r}" if files.shapes else ""
        raise CheckpointError(f"{where} matches no tensor of the model{example}; {_ADVICE}")
    declared = _declared_factor(adapter.path)
    terms: dict[str, list[Term]] = {}
    for module, found in modules.items():
        kinds = found.keys.keys()
        if kinds == {"alpha"} or (kinds & _LOW_RANK and not kinds >= {"down", "up"}):
            problems.extend(f"{key} lacks the other half of its pair" for key in found.keys.values())
            continue
        for name, term in _terms(module, found, files, adapter.scale, declared):
            terms.setdefault(name, []).append(term)
            problems.extend(_misfit(term, files.shapes, name, shapes))
    if problems:
        more = f" and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise CheckpointError(f"{where} fits only in part: {'; '.join(problems[:_NAMED])}{more}; {_ADVICE}")
    if skipped:
        logger.warning("skipped keys of parts the model lacks: %s keys=%d first=%s", where, len(skipped), skipped[0])
    return FittedAdapter(files=files, terms=terms, skipped=skipped)


def _modules(files: TensorFiles, shapes: Mapping[str, Shape]) -> tuple[dict[str, _Module], tuple[str, ...], list[str]]:
    """Keys by released module and kind; keys for parts the model lacks; and what is wrong with the others."""
    released = _released_module(shapes)
    lacking = [pattern for mark, pattern in _PARTS.items() if not any(mark in name for name in shapes)]
    modules: dict[str, _Module] = {}
    skipped, problems = [], []
    for key in files.shapes:
        match = _KEY.fullmatch(key)
        module = match and released(match["module"])
        if match is None or module is None:
            if any(pattern.search(key) for pattern in lacking):
                skipped.append(key)
            else:
                problems.append(f"{key} matches nothing")
            continue
        kind = str(match.lastgroup)
        keys = modules.setdefault(module, _Module(spelling=_PREFIX.sub("", match["module"], 1), keys={})).keys
        if kind in keys:
            problems.append(f"{key} beside {keys[kind]}")
        if kind == "alpha" and prod(files.shapes[key]) != 1:
            problems.append(f"{key} {list(files.shapes[key])} is not one number")
            continue
        keys[kind] = key
    return modules, tuple(skipped), problems


def _released_module(shapes: Mapping[str, Shape]) -> Callable[[str], str | None]:
    """From an adapter's spelling of a module to its released name; None where the model has no such module."""
    modules = {name.rpartition(".")[0] for name in shapes}
    kohya = {f"lora_unet_{module.replace('.', '_')}": module for module in modules}

    def released(spelling: str) -> str | None:
        if spelling in kohya:
            return kohya[spelling]
        bare = _PREFIX.sub("", spelling, 1)
        if bare in modules:
            return bare
        try:
            renamed = dit_name_from_diffusers(f"{bare}.weight").removesuffix(".weight")
        except CheckpointError:
            return None
        return renamed if renamed in modules else None

    return released


def _terms(
    module: str, found: _Module, files: TensorFiles, scale: float, declared: DeclaredFactor
) -> Iterator[tuple[str, Term]]:
    """Names of the tensors a module's keys change, and the changes."""
    keys = found.keys
    if "down" in keys:
        rank = prod(files.shapes[keys["down"]][:1]) or 1
        own = files.read(keys["alpha"]).item() / rank if "alpha" in keys else None
        factor = scale * (declared(found.spelling, rank) if own is None else own)
        yield f"{module}.weight", Term(keys=(keys["up"], keys["down"]), factor=factor)
        if "up_bias" in keys:
            yield f"{module}.bias", Term(keys=(keys["up_bias"],), factor=factor)
    for kind, leaf in _FULL.items():
        if kind in keys:
            yield f"{module}.{leaf}", Term(keys=(keys[kind],), factor=scale)


def _misfit(term: Term, found: Mapping[str, Shape], name: str, wanted: Mapping[str, Shape]) -> list[str]:
    """What is wrong with a change to a tensor of that name, if anything."""
    if name not in wanted:
        return [f"{term.keys[0]} matches nothing"]
    shape = wanted[name]
    shapes = [found[key] for key in term.keys]
    if len(shapes) == 1:
        fits = shapes[0] == shape
    else:
        up, down = shapes
        fits = up[:1] == shape[:1] and down[:1] == (prod(up[1:]),) and prod(down[1:]) == prod(shape[1:])
    if fits:
        return []
    return [f"{' times '.join(f'{key} {list(found[key])}' for key in term.keys)} for {name} {list(shape)}"]


def _declared_factor(file: Path) -> DeclaredFactor:
    """Factor of a module's pair of some rank where no tensor gives alpha: as PEFT says in the file, or beside it.

    1 where nothing is said, as diffusers does.
    """
    with safe_open(file, "pt") as opened:
        header = (opened.metadata() or {}).get("lora_adapter_metadata")
    beside = file.with_name("adapter_config.json")
    try:
        if header is None and file.name == "adapter_model.safetensors" and beside.is_file():
            header = beside.read_text(encoding="utf-8")
        config = {key.removeprefix("transformer."): value for key, value in json.loads(header or "{}").items()}
        patterns = [
            (re.compile(rf"(.*\.)?({pattern})"), float(alpha))
            for pattern, alpha in (config.get("alpha_pattern") or {}).items()
        ]
        default = config.get("lora_alpha")
        common = None if default is None else float(default)
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise CheckpointError(f"adapter {str(file)!r}: PEFT's settings of it cannot be read: {error}") from None
    power = 0.5 if config.get("use_rslora") else 1.0

    def factor(module: str, rank: int) -> float:
        alpha = next((alpha for pattern, alpha in patterns if pattern.fullmatch(module)), common)
        return 1.0 if alpha is None else alpha / rank**power

    return factor


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
