"""Qwen2.5 and Qwen2.5-VL of random weights, some 100 kB each, with a tokenizer of bytes."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SPECIALS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "initializer_range": 0.4,  # so that the likeliest token leads clearly
}


def write_tiny_qwen(folder: Path, *, sees: bool, seed: int = 0) -> Path:
    """A model in the released layout. Many tokens end its answers, for left alone random weights never do."""
    tokenizer = _tokenizer()
    ids: Any = tokenizer.convert_tokens_to_ids
    torch.manual_seed(seed)
    text = {**TEXT, "vocab_size": len(tokenizer), "pad_token_id": ids("<|endoftext|>")}
    if sees:
        rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}
        model: Any = transformers.Qwen2_5_VLForConditionalGeneration(
            transformers.Qwen2_5_VLConfig(
                text_config={**text, "rope_parameters": rope, "rope_scaling": rope},
                vision_config={
                    "depth": 2,
                    "hidden_size": 32,
                    "intermediate_size": 64,
                    "num_heads": 4,
                    "out_hidden_size": 32,
                    "fullatt_block_indexes": [1],
                    "initializer_range": 0.4,
                },
                image_token_id=ids("<|image_pad|>"),
                video_token_id=ids("<|video_pad|>"),
                vision_start_token_id=ids("<|vision_start|>"),
                vision_end_token_id=ids("<|vision_end|>"),
            )
        )
        pictures = transformers.Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56)
        pictures.save_pretrained(folder)
    else:
        model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**text))
    model.generation_config.eos_token_id = [ids("<|im_end|>"), *range(0, 240, 12)]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens(SPECIALS)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    )
