"""Tensor names of other layouts, turned into the released Wan2.1 names."""

import re
from collections.abc import Iterable

from wan_ray.errors import CheckpointError

_VAE_ENDS = {"quant_conv": "conv1", "post_quant_conv": "conv2"}
_VAE_PLACES = {
    "conv_in": "conv1",
    "mid_block.resnets.0": "middle.0",
    "mid_block.attentions.0": "middle.1",
    "mid_block.resnets.1": "middle.2",
    "norm_out": "head.0",
    "conv_out": "head.2",
}
_VAE_LAYERS = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
    **{layer: layer for layer in ("resample.1", "time_conv", "norm", "to_qkv", "proj")},
}
_VAE_PATTERN = re.compile(
    r"""(?: (?P<end> {ends})
          | (?P<side> encoder | decoder) \.
            (?: (?P<place> {places})
              | down_blocks \. (?P<down> \d+)
              | up_blocks \. (?P<level> \d+) \. (?: resnets \. (?P<block> \d+) | upsamplers \. 0))
            (?: \. (?P<layer> {layers}))?
        )
        \. (?P<leaf> weight | bias | gamma)""".format(
        **{
            key: "|".join(map(re.escape, table))
            for key, table in (("ends", _VAE_ENDS), ("places", _VAE_PLACES), ("layers", _VAE_LAYERS))
        }
    ),
    re.VERBOSE,
)


def vae_name_from_diffusers(name: str, *, num_res_blocks: int) -> str:
    """Released name of a tensor of diffusers' AutoencoderKLWan; CheckpointError if it has none.

    The released decoder numbers its blocks through all levels, hence the count of blocks per encoder level.
    """
    match = _VAE_PATTERN.fullmatch(name)
    if match is None:
        raise CheckpointError(f"unknown VAE tensor {name!r}; give a checkpoint of diffusers' AutoencoderKLWan")
    if match["end"]:
        return f"{_VAE_ENDS[match['end']]}.{match['leaf']}"
    if match["place"]:
        place = _VAE_PLACES[match["place"]]
    elif match["down"]:
        place = f"downsamples.{match['down']}"
    else:
        # A decoder level has one block more than an encoder level, then its upsampling.
        block = match["block"] or num_res_blocks + 1
        place = f"upsamples.{int(match['level']) * (num_res_blocks + 2) + int(block)}"
    layer = f".{_VAE_LAYERS[match['layer']]}" if match["layer"] else ""
    return f"{match['side']}.{place}{layer}.{match['leaf']}"


def vae_num_res_blocks_from_diffusers(names: Iterable[str]) -> int:
    """Residual blocks per encoder level of a diffusers AutoencoderKLWan with these tensor names.

    Read off the decoder's first level, which has one more; CheckpointError if there is none.
    """
    blocks = {match[1] for name in names if (match := re.match(r"decoder\.up_blocks\.0\.resnets\.(\d+)\.", name))}
    if len(blocks) < 2:
        raise CheckpointError(
            f"{len(blocks)} tensor groups 'decoder.up_blocks.0.resnets.N', at least 2 expected; "
            "give a checkpoint of diffusers' AutoencoderKLWan"
        )
    return len(blocks) - 1


_DIT_PLACES = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "patch_embedding": "patch_embedding",
    "vace_patch_embedding": "vace_patch_embedding",
    "proj_out": "head.head",
}
_DIT_TENSORS = {
    "scale_shift_table": "head.modulation",
    "condition_embedder.image_embedder.pos_embed": "img_emb.emb_pos",
}
_DIT_LAYERS = {
    "attn1": "self_attn",
    "attn2": "cross_attn",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "norm2": "norm3",  # the one norm with parameters stands before cross-attention
    "norm_q": "norm_q",
    "norm_k": "norm_k",
    "add_k_proj": "k_img",
    "add_v_proj": "v_img",
    "norm_added_k": "norm_k_img",
    "proj_in": "before_proj",
    "proj_out": "after_proj",
}
_DIT_LAYER = re.compile("|".join(map(re.escape, sorted(_DIT_LAYERS, key=len, reverse=True))))


def dit_name_from_diffusers(name: str) -> str:
    """Released name of a tensor of diffusers' Wan (or VACE) transformer; CheckpointError if it has none."""
    if name in _DIT_TENSORS:
        return _DIT_TENSORS[name]
    place, _, leaf = name.rpartition(".")
    if place in _DIT_PLACES:
        return f"{_DIT_PLACES[place]}.{leaf}"
    if match := re.fullmatch(r"((?:vace_)?blocks\.\d+)\.(.+)", name):
        block, layer = match.groups()
        if layer == "scale_shift_table":
            return f"{block}.modulation"
        return f"{block}.{_DIT_LAYER.sub(lambda part: _DIT_LAYERS[part[0]], layer)}"
    raise CheckpointError(f"unknown DiT tensor {name!r}; give a checkpoint of diffusers' WanTransformer3DModel for T2V")


_TEXT_PLACES = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
_TEXT_LAYERS = {
    "norm1": "layer.0.layer_norm",
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}


def text_encoder_name_from_released(name: str) -> str:
    """transformers' name of a tensor of the released umT5 encoder; CheckpointError if it has none."""
    if name in _TEXT_PLACES:
        return _TEXT_PLACES[name]
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.weight", name)
    if match is None or match[2] not in _TEXT_LAYERS:
        raise CheckpointError(f"unknown text encoder tensor {name!r}; give the release's umT5 file")
    return f"encoder.block.{match[1]}.{_TEXT_LAYERS[match[2]]}.weight"


def text_encoder_name_to_released(name: str) -> str:
    """The inverse of text_encoder_name_from_released."""
    for released, ours in _TEXT_PLACES.items():
        if name == ours:
            return released
    match = re.fullmatch(r"encoder\.block\.(\d+)\.(.+)\.weight", name)
    layers = {ours: released for released, ours in _TEXT_LAYERS.items()}
    if match is None or match[2] not in layers:
        raise CheckpointError(f"unknown umT5 tensor {name!r}; it is not one of transformers' UMT5EncoderModel")
    return f"blocks.{match[1]}.{layers[match[2]]}.weight"


_IMAGE_PLACES = {
    "visual.cls_embedding": "embeddings.class_embedding",
    "visual.pos_embedding": "embeddings.position_embedding.weight",
    "visual.patch_embedding.weight": "embeddings.patch_embedding.weight",
    "visual.pre_norm.weight": "pre_layrnorm.weight",  # transformers' own spelling
    "visual.pre_norm.bias": "pre_layrnorm.bias",
}
_IMAGE_LAYERS = {
    "norm1": ("layer_norm1",),
    "attn.to_qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.proj": ("self_attn.out_proj",),
    "norm2": ("layer_norm2",),
    "mlp.0": ("mlp.fc1",),
    "mlp.2": ("mlp.fc2",),
}
_IMAGE_UNUSED = ("textual.", "log_scale", "visual.head", "visual.post_norm.")


def image_encoder_names_from_released(name: str) -> tuple[str, ...]:
    """transformers' names for the equal parts of a tensor of the released CLIP file, in order; none if it is not run.

    CheckpointError if the file has no such tensor.
    """
    if name.startswith(_IMAGE_UNUSED):
        return ()
    if name in _IMAGE_PLACES:
        return (_IMAGE_PLACES[name],)
    match = re.fullmatch(r"visual\.transformer\.(\d+)\.(.+)\.(weight|bias)", name)
    if match is None or match[2] not in _IMAGE_LAYERS:
        raise CheckpointError(f"unknown image encoder tensor {name!r}; give the release's CLIP file")
    return tuple(f"encoder.layers.{match[1]}.{layer}.{match[3]}" for layer in _IMAGE_LAYERS[match[2]])
