"""Encode: a row's texts become embeddings, equal texts once, and its images and videos become conditions."""

from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import torch
from tokenizers import Tokenizer
from torch import Tensor

from wan_ray.model.checkpoint import Checkpoint
from wan_ray.model.text_encoder import encode_prompt, token_ids
from wan_ray.stages.condition import Conditioner
from wan_ray.stages.items import Item

if TYPE_CHECKING:
    from transformers import UMT5EncoderModel

CACHE_BYTES = 1 << 30


class EncodeStage:
    """Owns the text encoder, and what makes conditions where the model has some (see condition.py).

    Embeddings are kept by text, the least used dropped beyond CACHE_BYTES.
    """

    def __init__(
        self,
        encoder: "UMT5EncoderModel",
        tokenizer: Tokenizer,
        fingerprint: str,
        conditioner: Conditioner | None = None,
    ) -> None:
        self.encoder = encoder
        self.conditioner = conditioner
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint
        self.texts_encoded = 0
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._kept_bytes = 0

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

        RequestError when an image or video cannot be used: asked first, before any text is encoded.
        """
        if self.conditioner is not None:
            item = self.conditioner(item)
        request = item.sound
        tensors = {**item.tensors, "context": self._embedding(request.prompt)}
        if request.guidance_scale != 1:
            tensors["negative_context"] = self._embedding(request.negative_prompt)
        return replace(item, tensors=tensors, weights={**item.weights, "text_encoder": self.fingerprint})

    def _embedding(self, text: str) -> Tensor:
        if text in self._kept:
            self._kept.move_to_end(text)
            return self._kept[text]
        ids = token_ids(self.tokenizer, text)
        embedding = encode_prompt(self.encoder, ids).cpu()
        self.texts_encoded += 1
        self._kept[text] = embedding
        self._kept_bytes += embedding.nbytes
        while self._kept_bytes > CACHE_BYTES and len(self._kept) > 1:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return embedding
