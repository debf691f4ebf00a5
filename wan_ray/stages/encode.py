"""Encode: a row's texts become embeddings, equal texts once, and its images and videos become conditions."""

from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from tokenizers import Tokenizer
from torch import Tensor

from wan_ray.model.checkpoint import Checkpoint
from wan_ray.model.text_encoder import encode_prompt, token_ids
from wan_ray.parallel.offload import Offload, Weights
from wan_ray.stages.condition import Conditioner
from wan_ray.stages.items import Item
from wan_ray.stages.memory import Ladder
from wan_ray.stages.read import bucket_of

if TYPE_CHECKING:
    from transformers import UMT5EncoderModel

CACHE_BYTES = 1 << 30
_FIX = (
    "raise stages.encode.num_gpus so that fewer workers share a GPU, set it to 0 to encode on CPUs, or render fewer "
    "pixels or frames"
)


class _Way(NamedTuple):
    """Where models are between their uses, and pixels each way that the VAE encodes at a time."""

    offload: Offload = "none"
    tile: int | None = None

    def told(self) -> dict[str, str]:
        """For the record: nothing of the first way."""
        offload = {"encode_offload": self.offload} if self.offload != "none" else {}
        return offload | ({"encode_tile": str(self.tile)} if self.tile else {})


_WAYS = (_Way(), _Way("model"), _Way("model", 256), _Way("model", 128))


class EncodeStage:
    """Owns the text encoder, and what makes conditions where the model has some (see condition.py).

    Embeddings are kept by text, the least used dropped beyond CACHE_BYTES. Without the memory for all models at once
    each is on the device for its part only, and then the VAE encodes in tiles.
    """

    def __init__(
        self,
        encoder: "UMT5EncoderModel",
        tokenizer: Tokenizer,
        fingerprint: str,
        conditioner: Conditioner | None = None,
    ) -> None:
        self.encoder = encoder
        self._encoder_weights = Weights(encoder, (), encoder.device)
        self.conditioner = conditioner
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint
        self.texts_encoded = 0
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._kept_bytes = 0
        self._ladder = Ladder("encode", _WAYS if conditioner is not None else _WAYS[:2])

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype,
        device: torch.device,
        conditioner: Conditioner | None = None,
    ) -> Self:
        """CheckpointError when the weights do not fit."""
        encoder, fingerprint = checkpoint.load_text_encoder(dtype=dtype, device=device)
        return cls(encoder, checkpoint.load_tokenizer(), fingerprint, conditioner)

    def __call__(self, item: Item) -> Item:
        """The item with tensors on the CPU: context [L, 4096], negative_context where guidance needs it, conditions.

        RequestError when an image or video cannot be used: asked first, before any text is encoded. OutOfMemoryError,
        with what to do, when there is not even memory for one model and small tiles.
        """
        return self._ladder.climb(bucket_of(item.sound), lambda way: self._encoded(item, way), fix=_FIX)

    def _encoded(self, item: Item, way: _Way) -> Item:
        self._encoder_weights.keep(way.offload)
        if self.conditioner is not None:
            item = self.conditioner(item, offload=way.offload, tile=way.tile)
        request = item.sound
        tensors = {**item.tensors, "context": self._embedding(request.prompt)}
        if request.guided_steps:
            tensors["negative_context"] = self._embedding(request.negative_prompt)
        weights = {**item.weights, "text_encoder": self.fingerprint}
        return replace(item, tensors=tensors, weights=weights, rendered_on={**item.rendered_on, **way.told()})

    def _embedding(self, text: str) -> Tensor:
        if text in self._kept:
            self._kept.move_to_end(text)
            return self._kept[text]
        ids = token_ids(self.tokenizer, text)
        with self._encoder_weights:
            embedding = encode_prompt(self.encoder, ids).cpu()
        self.texts_encoded += 1
        self._kept[text] = embedding
        self._kept_bytes += embedding.nbytes
        while self._kept_bytes > CACHE_BYTES and len(self._kept) > 1:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return embedding
