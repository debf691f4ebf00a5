"""umT5 through transformers, with the token ids of the release."""

import html
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import ftfy
import regex
import torch
from tokenizers import Tokenizer
from torch import Tensor

from wan_ray.errors import CheckpointError
from wan_ray.model.quantize import importing_torchao

if TYPE_CHECKING:
    from transformers import UMT5EncoderModel

MAX_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class TextEncoderArchitecture:
    """Sizes of a umT5 encoder."""

    vocab_size: int
    dim: int
    num_layers: int
    num_heads: int
    head_dim: int
    ffn_dim: int

    @classmethod
    def from_shapes(cls, shapes: dict[str, tuple[int, ...]]) -> Self:
        """Sizes from tensor shapes under transformers' names; CheckpointError when they are not a umT5 encoder's."""
        block = "encoder.block.0.layer.0.SelfAttention"
        try:
            num_heads = shapes[f"{block}.relative_attention_bias.weight"][1]
            return cls(
                vocab_size=shapes["shared.weight"][0],
                dim=shapes["shared.weight"][1],
                num_layers=1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.block.")),
                num_heads=num_heads,
                head_dim=shapes[f"{block}.q.weight"][0] // num_heads,
                ffn_dim=shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0],
            )
        except KeyError as error:
            raise CheckpointError(f"not a umT5 text encoder: tensor {error.args[0]!r} is missing") from None


def build_text_encoder(architecture: TextEncoderArchitecture) -> "UMT5EncoderModel":
    """The encoder, on torch's current default device, with whatever weights that gives."""
    # Imported here: it takes seconds, and workers of other stages have no text encoder.
    with importing_torchao():
        from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=architecture.vocab_size,
        d_model=architecture.dim,
        d_kv=architecture.head_dim,
        d_ff=architecture.ffn_dim,
        num_layers=architecture.num_layers,
        num_heads=architecture.num_heads,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        use_cache=False,
    )
    return UMT5EncoderModel(config).eval()


def clean_prompt(text: str) -> str:
    """Broken Unicode mended, HTML entities resolved twice, runs of white space made one blank: as in training."""
    unescaped = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return regex.sub(r"\s+", " ", unescaped).strip()


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a folder's tokenizer.json.

    Not through transformers: its T5Tokenizer rebuilds the model without byte fallback and gives other ids for
    emoji and rare characters.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(f"{str(file)!r} is missing; copy the release's google/umt5-xxl folder beside the weights")
    return Tokenizer.from_file(str(file))


def token_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Ids of the cleaned prompt, closed by the end token, at most 512: what is longer is cut before the end token."""
    ids = tokenizer.encode(clean_prompt(prompt)).ids
    return ids if len(ids) <= MAX_TOKENS else [*ids[: MAX_TOKENS - 1], ids[-1]]


@torch.inference_mode()
def encode_prompt(encoder: "UMT5EncoderModel", ids: list[int]) -> Tensor:
    """Embedding of one prompt without padding, [num_tokens, dim], in the encoder's dtype.

    One at a time: a batch would pad, and the rounding of a prompt's embedding would depend on its neighbours.
    """
    tokens = torch.tensor([ids], device=encoder.shared.weight.device)
    return encoder(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state[0]
