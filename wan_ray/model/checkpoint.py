"""A checkpoint folder or file: which layout it has, and its parts loaded as models."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from tokenizers import Tokenizer
from torch import nn

from wan_ray.errors import CheckpointError
from wan_ray.model.blocks import TOKENS_PER_IMAGE
from wan_ray.model.dit import DiT, parameter_dtype
from wan_ray.model.image_encoder import ImageEncoderArchitecture, build_image_encoder, image_encoder_tensors
from wan_ray.model.key_maps import (
    dit_name_from_diffusers,
    text_encoder_name_from_released,
    vae_name_from_diffusers,
    vae_num_res_blocks_from_diffusers,
)
from wan_ray.model.lora import Adapter, fit, merged
from wan_ray.model.quantize import quantized_fingerprint, quantizer
from wan_ray.model.text_encoder import TextEncoderArchitecture, build_text_encoder, load_tokenizer
from wan_ray.model.vae import VAEArchitecture, WanVAE
from wan_ray.model.weights import Shape, TensorFiles, check_shapes, load_, shapes_of
from wan_ray.variants import DiTArchitecture, Quantization

if TYPE_CHECKING:
    from transformers import CLIPVisionModel, UMT5EncoderModel

TEXT_ENCODER_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
VAE_FILE = "Wan2.1_VAE.pth"
IMAGE_ENCODER_FILE = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
TOKENIZER_FOLDER = "google/umt5-xxl"
_DIT_STEM = "diffusion_pytorch_model"
_HEAD_DIM = 128  # of every released model
Layout = Literal["released", "diffusers", "single file"]
_PREFIXES = ("model.diffusion_model.", "diffusion_model.")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where each part of a model lies: the release's layout, a -Diffusers folder, or a lone DiT with companions."""

    layout: Layout
    dit_files: tuple[Path, ...]
    dit_config: Path | None
    text_encoder_files: tuple[Path, ...]
    vae_files: tuple[Path, ...]
    image_encoder_files: tuple[Path, ...]
    tokenizer: Path

    def open_dit(self) -> TensorFiles:
        """The denoiser's tensors under released names."""
        tensors = TensorFiles.open(self.dit_files).renamed(_without_prefix)
        if any(name.startswith("condition_embedder.") for name in tensors.shapes):
            return tensors.renamed(dit_name_from_diffusers)
        return tensors

    def open_vae(self) -> TensorFiles:
        """The VAE's tensors under released names."""
        tensors = TensorFiles.open(self.vae_files)
        if any(name.startswith("encoder.conv_in.") for name in tensors.shapes):
            count = vae_num_res_blocks_from_diffusers(tensors.shapes)
            return tensors.renamed(lambda name: vae_name_from_diffusers(name, num_res_blocks=count))
        return tensors

    def open_text_encoder(self) -> TensorFiles:
        """The text encoder's tensors under transformers' names."""
        tensors = TensorFiles.open(self.text_encoder_files)
        if "token_embedding.weight" in tensors.shapes:
            return tensors.renamed(text_encoder_name_from_released)
        return tensors.without(lambda name: name == "encoder.embed_tokens.weight")  # tied to shared.weight

    def open_image_encoder(self) -> TensorFiles:
        """The tensors of CLIP's visual tower that are run, under transformers' names."""
        if not self.image_encoder_files:
            raise CheckpointError(f"the model needs an image encoder; copy {IMAGE_ENCODER_FILE!r} beside its weights")
        return image_encoder_tensors(TensorFiles.open(self.image_encoder_files))

    def check(self, adapters: Sequence[Adapter] = ()) -> DiTArchitecture:
        """Sizes of the denoiser, when every part has exactly its tensors; CheckpointError if not. Reads no weights."""
        dit, tensors = self._dit()
        check_shapes(shapes_of(dit), tensors.shapes, what="DiT")
        for adapter in adapters:
            fit(adapter, tensors.shapes)
        vae, tensors = self.empty_vae()
        check_shapes(shapes_of(vae), tensors.shapes, what="VAE")
        encoder, tensors = self.empty_text_encoder()
        check_shapes(shapes_of(encoder), tensors.shapes, what="text encoder")
        if dit.architecture.image_tokens:
            image_encoder, tensors = self.empty_image_encoder()
            check_shapes(shapes_of(image_encoder), tensors.shapes, what="image encoder")
        load_tokenizer(self.tokenizer)
        return dit.architecture

    def load_dit(
        self,
        *,
        dtype: torch.dtype,
        device: torch.device,
        adapters: Sequence[Adapter] = (),
        quantization: Quantization = "none",
    ) -> tuple[DiT, str]:
        """The denoiser with the adapters merged, then quantized, and the fingerprint of its weights.

        MissingExtraError without torchao where it is needed.
        """
        model, tensors = self.empty_dit(device=device, adapters=adapters)
        quantize = quantizer(quantization, dtype=dtype, device=device)
        load_(
            model, tensors, device=device, dtype_of=lambda name: parameter_dtype(name, dtype), what="DiT", then=quantize
        )
        return model.eval(), quantized_fingerprint(tensors.fingerprint, quantization)

    def empty_dit(self, *, device: torch.device, adapters: Sequence[Adapter] = ()) -> tuple[DiT, TensorFiles]:
        """The denoiser on the meta device, and the tensors to fill it with; adapters are merged on the device."""
        model, tensors = self._dit()
        return model, merged(tensors, [fit(adapter, tensors.shapes) for adapter in adapters], device=device)

    def load_vae(self, *, device: torch.device) -> tuple[WanVAE, str]:
        """The VAE in float32 and the fingerprint of its weights."""
        model, tensors = self.empty_vae()
        load_(model, tensors, device=device, dtype_of=lambda _: torch.float32, what="VAE")
        return model.eval(), tensors.fingerprint

    def load_text_encoder(self, *, dtype: torch.dtype, device: torch.device) -> tuple["UMT5EncoderModel", str]:
        """umT5 and the fingerprint of its weights."""
        model, tensors = self.empty_text_encoder()
        load_(model, tensors, device=device, dtype_of=lambda _: dtype, what="text encoder")
        return model.eval(), tensors.fingerprint

    def load_image_encoder(self, *, dtype: torch.dtype, device: torch.device) -> tuple["CLIPVisionModel", str]:
        """CLIP's visual tower and the fingerprint of its weights; CheckpointError when the checkpoint has none."""
        model, tensors = self.empty_image_encoder()
        load_(model, tensors, device=device, dtype_of=lambda _: dtype, what="image encoder")
        cast(nn.Module, model).to(device).eval()
        return model, tensors.fingerprint

    def empty_image_encoder(self) -> tuple["CLIPVisionModel", TensorFiles]:
        """CLIP's visual tower on the meta device, and the tensors to fill it with."""
        tensors = self.open_image_encoder()
        with torch.device("meta"):
            return build_image_encoder(ImageEncoderArchitecture.from_shapes(tensors.shapes)), tensors

    def _dit(self) -> tuple[DiT, TensorFiles]:
        tensors = self.open_dit()
        architecture = dit_architecture(tensors.shapes, config_heads=_heads_in_config(self.dit_config, tensors.shapes))
        with torch.device("meta"):
            return DiT(architecture), tensors

    def empty_vae(self) -> tuple[WanVAE, TensorFiles]:
        """The VAE on the meta device, and the tensors to fill it with."""
        tensors = self.open_vae()
        with torch.device("meta"):
            return WanVAE(VAEArchitecture.from_shapes(tensors.shapes)), tensors

    def empty_text_encoder(self) -> tuple["UMT5EncoderModel", TensorFiles]:
        """umT5 on the meta device, and the tensors to fill it with."""
        tensors = self.open_text_encoder()
        with torch.device("meta"):
            return build_text_encoder(TextEncoderArchitecture.from_shapes(tensors.shapes)), tensors

    def load_tokenizer(self) -> Tokenizer:
        """The prompt's tokenizer."""
        return load_tokenizer(self.tokenizer)


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the parts of a checkpoint are looked for; each method finds one, or raises CheckpointError naming it.

    dit is a file or the folder of its shards; root is the folder of all else, None beside a lone DiT.
    """

    layout: Layout
    dit: Path
    root: Path | None

    def dit_files(self) -> tuple[Path, ...]:
        """Of the denoiser."""
        return (self.dit,) if self.layout == "single file" else _weight_files(self.dit, _DIT_STEM)

    def dit_config(self) -> Path | None:
        """Its config, whether it exists or not."""
        if self.root is None:
            return None
        return (self.root / "transformer" if self._as_diffusers else self.root) / "config.json"

    def text_encoder_files(self) -> tuple[Path, ...]:
        """Of umT5."""
        if self._as_diffusers:
            return _weight_files(self._folder / "text_encoder", "model")
        return (_existing(self._folder / TEXT_ENCODER_FILE),)

    def vae_files(self) -> tuple[Path, ...]:
        """Of the VAE."""
        return (
            _weight_files(self._folder / "vae", _DIT_STEM)
            if self._as_diffusers
            else (_existing(self._folder / VAE_FILE),)
        )

    def image_encoder_files(self) -> tuple[Path, ...]:
        """Of CLIP, which not every model has: none where there is none."""
        if self._as_diffusers:
            folder = self._folder / "image_encoder"
            return _weight_files(folder, "model") if folder.is_dir() else ()
        return tuple(file for file in (self._folder / IMAGE_ENCODER_FILE,) if file.is_file())

    def tokenizer(self) -> Path:
        """The prompt's."""
        return _existing(self._folder / ("tokenizer" if self._as_diffusers else TOKENIZER_FOLDER))

    def tokenizer_file(self) -> Path:
        """All of it that is read."""
        return _existing(self.tokenizer() / "tokenizer.json")

    @property
    def _as_diffusers(self) -> bool:
        return self.layout == "diffusers" or (self.root is not None and (self.root / "vae").is_dir())

    @property
    def _folder(self) -> Path:
        if self.root is None:
            raise CheckpointError(
                f"{str(self.dit)!r} holds a DiT alone; name a folder with text encoder and VAE as model.companions"
            )
        return self.root


def find_checkpoint(path: str | Path, companions: str | Path | None = None) -> Checkpoint:
    """The checkpoint at a local path; companions is a folder with text encoder and VAE, for a lone DiT file.

    CheckpointError says what a folder lacks. No tensor is read.
    """
    places = find_places(path, companions)
    return Checkpoint(
        layout=places.layout,
        dit_files=places.dit_files(),
        dit_config=places.dit_config(),
        text_encoder_files=places.text_encoder_files(),
        vae_files=places.vae_files(),
        image_encoder_files=places.image_encoder_files(),
        tokenizer=places.tokenizer(),
    )


def find_places(path: str | Path, companions: str | Path | None = None) -> Places:
    """Where find_checkpoint looks; CheckpointError when a path does not exist at all."""
    root = Path(path).expanduser()
    if root.is_file():
        others = None if companions is None else Path(companions).expanduser()
        if others is not None and not others.is_dir():
            raise CheckpointError(
                f"model.companions {str(others)!r} does not exist; give a folder with text encoder and VAE"
            )
        return Places(layout="single file", dit=root, root=others)
    if (root / "transformer").is_dir():
        return Places(layout="diffusers", dit=root / "transformer", root=root)
    if not root.is_dir():
        raise CheckpointError(f"checkpoint {str(path)!r} does not exist; give a folder or a DiT .safetensors file")
    return Places(layout="released", dit=root, root=root)


def dit_architecture(shapes: dict[str, Shape], *, config_heads: int | None = None) -> DiTArchitecture:
    """Sizes of a denoiser from its tensors' shapes; heads are 128 wide unless config_heads says otherwise."""
    try:
        dim, in_channels = shapes["patch_embedding.weight"][:2]
        heads = config_heads or (dim // _HEAD_DIM if dim % _HEAD_DIM == 0 else 0)
        if not heads:
            raise CheckpointError(
                f"DiT width {dim} is not a multiple of {_HEAD_DIM}, and no config.json of that width gives num_heads; "
                "put the model's config.json beside its weights"
            )
        if dim % heads:
            raise CheckpointError(f"config.json: num_heads={heads} does not divide the DiT's width {dim}; mend it")
        return DiTArchitecture(
            dim=dim,
            ffn_dim=shapes["blocks.0.ffn.0.weight"][0],
            num_heads=heads,
            num_layers=(num_layers := _count(shapes, "blocks.")),
            in_channels=in_channels,
            out_channels=shapes["head.head.weight"][0] // 4,
            text_dim=shapes["text_embedding.0.weight"][1],
            frequency_dim=shapes["time_embedding.0.weight"][1],
            image_tokens=_image_tokens(shapes),
            # As released, hints go to every so many-th block: every 5th of 40, every 2nd of 30.
            vace_layers=tuple(range(0, num_layers, -(-num_layers // hints)))
            if (hints := _count(shapes, "vace_blocks."))
            else (),
            vace_in_channels=shapes.get("vace_patch_embedding.weight", (0, 0))[1],
        )
    except KeyError as error:
        raise CheckpointError(f"not a Wan2.1 DiT: tensor {error.args[0]!r} is missing") from None
    except (IndexError, ValueError) as error:
        raise CheckpointError(f"not a Wan2.1 DiT: a tensor has another rank or name ({error})") from None


def _count(shapes: dict[str, Shape], prefix: str) -> int:
    """How many numbered blocks there are under a prefix."""
    return 1 + max((int(name.split(".")[1]) for name in shapes if name.startswith(prefix)), default=-1)


def _image_tokens(shapes: dict[str, Shape]) -> int:
    if "img_emb.emb_pos" in shapes:
        return shapes["img_emb.emb_pos"][1]
    return TOKENS_PER_IMAGE if "img_emb.proj.0.weight" in shapes else 0


def _heads_in_config(file: Path | None, shapes: dict[str, Shape]) -> int | None:
    """num_heads of a config.json whose width is the tensors' own: some released VACE configs are garbage."""
    if file is None or not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
    numbers = {k: v for k, v in config.items() if isinstance(v, int)} if isinstance(config, dict) else {}
    heads = numbers.get("num_heads") or numbers.get("num_attention_heads") or 0
    width = numbers.get("dim") or heads * numbers.get("attention_head_dim", 0)
    return heads if heads > 0 and width == shapes.get("patch_embedding.weight", (0,))[0] else None


def _weight_files(folder: Path, stem: str) -> tuple[Path, ...]:
    """One file, the files of an index, or shards without one; CheckpointError names what is missing."""
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if single.is_file():
        return (single,)
    if index.is_file():
        return tuple(_existing(folder / name) for name in _names_in_index(index))
    shards = sorted(folder.glob(f"{stem}-*-of-*.safetensors"))
    if not shards:
        raise CheckpointError(
            f"{str(single)!r} is missing, and there are no shards {stem}-*-of-*.safetensors beside it"
        )
    last = shards[-1].stem.rpartition("-")[2]
    numbers = range(1, int(last) + 1) if last.isdecimal() else ()
    return tuple(_existing(folder / f"{stem}-{i:0{len(last)}}-of-{last}.safetensors") for i in numbers)


def _names_in_index(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{str(index)!r} is no index of weight files; download it again") from None


def _existing(path: Path) -> Path:
    if not path.exists():
        raise CheckpointError(f"{str(path)!r} is missing from the checkpoint")
    return path


def _without_prefix(name: str) -> str:
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name
