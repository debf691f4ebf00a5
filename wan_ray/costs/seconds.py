"""Estimated seconds of each stage on one clip: FLOPs and bytes over what the GPU does of them per second."""

import math

from wan_ray.costs.bucket import Bucket
from wan_ray.costs.communication import exposed_seconds, pass_exchange_seconds
from wan_ray.costs.flops import (
    dit_context,
    dit_pass,
    image_encoder_flops,
    text_encoder_flops,
    vae_decode_flops,
    vae_encode_flops,
)
from wan_ray.costs.hardware import ENGINE, GPU, VAE_SHARE
from wan_ray.costs.memory import dit_parameters, text_encoder_parameters
from wan_ray.degrees import Degrees
from wan_ray.variants import DiTArchitecture, get_variant

# Assumed: what ranks lose by waiting for the slowest; what each doubling of a ring costs by merging and smaller blocks
# (26 % for the first on Wan2.1's published RTX 4090 times, its slow links included); and pixels that one x264 thread
# encodes a second at preset medium.
_IMBALANCE, _RING_DOUBLING, _X264_PIXELS_PER_S = 1.02, 0.10, 10e6
_TYPICAL_PROMPT_TOKENS = 120


def pass_seconds(
    architecture: DiTArchitecture,
    num_tokens: int,
    *,
    degrees: Degrees,
    gpu: GPU,
    gpus_per_node: int,
    fsdp: bool = False,
    offload_blocks: bool = False,
    dtype_bytes: int = 2,
) -> float:
    """One forward pass of a gang."""
    ranks = degrees.sequence
    whole = dit_pass(architecture, -(-num_tokens // ranks) * ranks)
    heads = -(-architecture.num_heads // degrees.ulysses) * degrees.ulysses / architecture.num_heads
    slower = 2 / dtype_bytes  # float32 in place of 16 bits: half the rate, or TF32's
    computing = whole.linear / (gpu.matmul * slower) + heads * whole.attention / (gpu.attention * slower)
    computing = (computing + whole.moved_bytes / gpu.bandwidth) / ranks / ENGINE
    computing *= (_IMBALANCE if degrees.world_size > 1 else 1) * (1 + _RING_DOUBLING * math.log2(degrees.ring))
    fetched = dit_parameters(architecture).num_bytes(dtype_bytes) / (degrees.world_size if fsdp else 1)
    fetching = fetched / gpu.host if offload_blocks else 0
    return max(computing, fetching) + exposed_seconds(
        architecture,
        num_tokens,
        degrees=degrees,
        gpu=gpu,
        gpus_per_node=gpus_per_node,
        computing_s=computing,
        fsdp=fsdp,
        dtype_bytes=dtype_bytes,
    )


def denoise_seconds(
    architecture: DiTArchitecture,
    bucket: Bucket,
    *,
    degrees: Degrees,
    gpu: GPU,
    gpus_per_node: int,
    fsdp: bool = False,
    offload_blocks: bool = False,
    dtype_bytes: int = 2,
) -> float:
    """One clip by one gang whose weights are loaded."""
    one = pass_seconds(
        architecture,
        bucket.num_tokens,
        degrees=degrees,
        gpu=gpu,
        gpus_per_node=gpus_per_node,
        fsdp=fsdp,
        offload_blocks=offload_blocks,
        dtype_bytes=dtype_bytes,
    )
    texts = bucket.num_texts // min(bucket.num_texts, degrees.cfg)
    # Of a gang's halves, one has nothing of its own to compute in a step without guidance.
    passes = bucket.num_passes if degrees.cfg == 1 else bucket.num_inference_steps
    latent_bytes = 4 * 16 * bucket.num_latent_frames * bucket.num_pixels // 64
    between = pass_exchange_seconds(latent_bytes, degrees=degrees, gpu=gpu, gpus_per_node=gpus_per_node)
    if bucket.num_texts == 1:
        between = 0.0
    prepared = texts * dit_context(architecture, bucket.num_tokens) / gpu.matmul / ENGINE
    return passes * one + bucket.num_inference_steps * between + prepared


def encode_seconds(bucket: Bucket, gpu: GPU) -> float:
    """One row's texts, images and controls; the negative prompt, which rows share, is not counted."""
    architecture = get_variant(bucket.variant).architecture
    flops = text_encoder_flops(_TYPICAL_PROMPT_TOKENS)
    seconds = flops / gpu.matmul / ENGINE + text_encoder_parameters() * 2 / gpu.bandwidth
    if architecture is None:
        return seconds
    sized = bucket.sized()
    clips = 2 if architecture.vace_layers else 1 if architecture.image_tokens else 0
    vae = clips * vae_encode_flops(sized.width, sized.height, bucket.num_frames)
    vae += bucket.num_references * vae_encode_flops(sized.width, sized.height, 1)
    images = architecture.image_tokens // 257 * image_encoder_flops()
    return seconds + (vae + images) / (VAE_SHARE * gpu.tf32)


def decode_seconds(bucket: Bucket, gpu: GPU, *, threads: int = 4) -> float:
    """One clip from latents to a file: ffmpeg runs beside the VAE, on so many threads."""
    sized = bucket.sized()
    vae = vae_decode_flops(sized.width, sized.height, bucket.num_frames) / (VAE_SHARE * gpu.tf32)
    return max(vae, bucket.num_frames * bucket.num_pixels / (_X264_PIXELS_PER_S * threads))
