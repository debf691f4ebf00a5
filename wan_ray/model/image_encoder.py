"""CLIP ViT-H/14's visual tower through transformers: what an image tells the DiT besides its pixels."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_ray.errors import CheckpointError
from wan_ray.model.key_maps import image_encoder_names_from_released
from wan_ray.model.quantize import importing_torchao
from wan_ray.model.weights import Shape, TensorFiles

if TYPE_CHECKING:
    from transformers import CLIPVisionModel

IMAGE_ENCODER_FILE = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
IMAGE_SIDE = 224
PATCH_SIDE = 14
_HEAD_DIM = 80  # of ViT-H; no tensor tells it
# Mean and standard deviation of red, green and blue in [0, 1] that CLIP was trained with.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class ImageEncoderArchitecture:
    """Sizes of a visual tower; num_layers counts the blocks that are run, one less than a checkpoint has."""

    dim: int
    ffn_dim: int
    num_layers: int

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Shape]) -> Self:
        """Sizes from what image_encoder_tensors gives; CheckpointError when it is not a CLIP visual tower's."""
        try:
            dim = shapes["pre_layrnorm.weight"][0]
            ffn_dim = shapes["encoder.layers.0.mlp.fc1.weight"][0]
        except KeyError as error:
            raise CheckpointError(f"not a CLIP image encoder: tensor {error.args[0]!r} is missing") from None
        except IndexError:
            raise CheckpointError("not a CLIP image encoder: a tensor has another rank") from None
        if dim % _HEAD_DIM:
            raise CheckpointError(
                f"the image encoder is {dim} wide, which is not a multiple of {_HEAD_DIM} as ViT-H is; "
                "give the release's CLIP ViT-H/14"
            )
        return cls(dim=dim, ffn_dim=ffn_dim, num_layers=_num_layers(shapes))


def image_encoder_tensors(stored: TensorFiles) -> TensorFiles:
    """What is run of the release's CLIP file or of a -Diffusers image_encoder, under transformers' names.

    That is all but the last block and what follows it. CheckpointError names a tensor of something else.
    """
    is_released = "visual.cls_embedding" in stored.shapes
    names_of = image_encoder_names_from_released if is_released else _names_from_transformers
    homes = {
        new: (name, part, len(new_names))
        for name, new_names in ((name, names_of(name)) for name in stored.shapes)
        for part, new in enumerate(new_names)
    }
    shapes = {new: _part_shape(stored.shapes[name], count) for new, (name, _, count) in homes.items()}

    def read(new: str) -> Tensor:
        name, part, count = homes[new]
        return stored.read(name).chunk(count)[part].reshape(shapes[new])

    last = f"encoder.layers.{_num_layers(shapes) - 1}."
    dtypes = {new: stored.dtypes[name] for new, (name, _, _) in homes.items() if name in stored.dtypes}
    return TensorFiles(shapes, read, stored.fingerprint, dtypes).without(lambda new: new.startswith(last))


def build_image_encoder(architecture: ImageEncoderArchitecture) -> "CLIPVisionModel":
    """The tower, on torch's current default device, with whatever weights that gives.

    Its one buffer is on the CPU, so that weights can be filled in on meta: call .to(device) once they are.
    """
    # Imported here: it takes seconds, and few workers have an image encoder.
    with importing_torchao():
        from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=architecture.dim,
        intermediate_size=architecture.ffn_dim,
        num_hidden_layers=architecture.num_layers,
        num_attention_heads=architecture.dim // _HEAD_DIM,
        image_size=IMAGE_SIDE,
        patch_size=PATCH_SIDE,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
    )
    model = CLIPVisionModel(config)
    # transformers 4 has the tower one module deeper, with the same names and calls.
    tower = getattr(model, "vision_model", model)
    tower.register_module("post_layernorm", nn.Identity())  # for the pooled output alone, which is not used
    positions = torch.arange((IMAGE_SIDE // PATCH_SIDE) ** 2 + 1, device="cpu")[None]
    tower.embeddings.register_buffer("position_ids", positions, persistent=False)
    return tower.eval()


@torch.inference_mode()
def encode_image(encoder: "CLIPVisionModel", image_CHW: Tensor) -> Tensor:
    """Features [257, 1280] of an image in [-1, 1], in the encoder's dtype, before its last block.

    Squeezed to a square without antialias, as in training: wan/modules/clip.py (9737cba).
    """
    resized_BCHW = F.interpolate(image_CHW[None].float(), (IMAGE_SIDE, IMAGE_SIDE), mode="bicubic")
    mean, std = (resized_BCHW.new_tensor(values).view(3, 1, 1) for values in (_MEAN, _STD))
    pixels_BCHW = (resized_BCHW * 0.5 + 0.5 - mean) / std
    return encoder(pixels_BCHW.to(encoder.embeddings.patch_embedding.weight)).last_hidden_state[0]


def _names_from_transformers(name: str) -> tuple[str, ...]:
    name = name.removeprefix("vision_model.")
    return () if name.startswith("post_layernorm.") or name == "embeddings.position_ids" else (name,)


def _num_layers(shapes: Mapping[str, Shape]) -> int:
    matches = (re.match(r"encoder\.layers\.(\d+)\.", name) for name in shapes)
    return 1 + max((int(match[1]) for match in matches if match), default=-1)


def _part_shape(shape: Shape, count: int) -> Shape:
    """Of one of count equal parts; the released embeddings have leading dims of one, transformers' have none."""
    dims = itertools.dropwhile(lambda size: size == 1, shape)
    return tuple(size // count if index == 0 else size for index, size in enumerate(dims))
