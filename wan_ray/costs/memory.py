"""GPU memory of each stage's worker, in bytes: weights as they are held, and the most that is live besides them.

What our own modules keep alive was counted on the meta device; the tests hold these sums to that. What a GPU adds
(context, allocator, NCCL) is assumed, and named below.
"""

from dataclasses import dataclass
from functools import lru_cache

from wan_ray.costs.bucket import Bucket
from wan_ray.costs.flops import TEXT_TOKENS, ImageEncoderSizes, TextEncoderSizes, num_blocks
from wan_ray.degrees import Degrees
from wan_ray.variants import DiTArchitecture, Quantization

GB = 1e9
# Assumed: a CUDA context with the libraries' workspaces, NCCL's buffers, and what the allocator cannot use.
CONTEXT_BYTES = 0.9 * GB
NCCL_BYTES = 0.5 * GB
FRAGMENTATION = 1.05

_FLOAT32 = 4
_IMAGE_WIDTH = 1280
VAE_PARAMETERS = 126_892_531
# Live bytes of the VAE per pixel of a frame while it makes four frames of one latent frame, or one of the first; and
# the other way round.
_DECODE_BYTES, _DECODE_FIRST_BYTES, _ENCODE_BYTES = 18_723, 10_611, 14_903
# The same of what is never tiled, and the pixels beside a tile that count like its own.
_UNTILED_BYTES, _TILE_BORDER = 724, 8
# A quantized layer's bytes per output channel: a float32 scale, and int8's zero, which is always 0. What float8 keeps
# alive of each number of its input while it quantizes that: three copies in float32, and two in 16 bits.
_SCALE_BYTES = {"int8": 5, "float8": 4}
_QUANTIZING_BYTES = 15
_BLOCKS_AT_WORK = 2  # the one at work and the one on its way, sharded or offloaded


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """How many numbers a model's weights are: those in the dtype it computes in, and those kept in float32."""

    computing: int
    float32: int

    @property
    def count(self) -> int:
        """All of them."""
        return self.computing + self.float32

    def num_bytes(self, dtype_bytes: int) -> int:
        """Held with so many bytes per computing number."""
        return self.computing * dtype_bytes + self.float32 * _FLOAT32


@lru_cache
def dit_block_parameters(architecture: DiTArchitecture) -> Parameters:
    """Of one block; a block of VACE's stream has a projection more."""
    d, with_image = architecture.dim, architecture.image_tokens > 0
    square = d * d + d
    return Parameters(
        computing=_num_squares(architecture) * square + 2 * d * architecture.ffn_dim + architecture.ffn_dim + d,
        float32=12 * d + (d if with_image else 0),
    )


def _num_squares(architecture: DiTArchitecture) -> int:
    """How many of a block's linear layers, all in its attentions, are as wide as it is on either side."""
    return 10 if architecture.image_tokens > 0 else 8


def _saved_by_quantization(architecture: DiTArchitecture, quantization: Quantization, dtype_bytes: int) -> float:
    """Bytes of one block's weights that 8 bits do without."""
    if quantization == "none":
        return 0
    d, squares = architecture.dim, _num_squares(architecture)
    weights, channels = squares * d * d + 2 * d * architecture.ffn_dim, (squares + 1) * d + architecture.ffn_dim
    return weights * (dtype_bytes - 1) - channels * _SCALE_BYTES[quantization]


@lru_cache
def dit_parameters(architecture: DiTArchitecture) -> Parameters:
    """Of the whole denoiser."""
    d, block = architecture.dim, dit_block_parameters(architecture)
    square = d * d + d
    computing = num_blocks(architecture) * block.computing
    float32 = num_blocks(architecture) * block.float32
    computing += 4 * architecture.in_channels * d + d + architecture.text_dim * d + d + square
    float32 += architecture.frequency_dim * d + d + square + 6 * square
    float32 += 4 * architecture.out_channels * (d + 1) + 2 * d  # the head
    if architecture.vace_layers:
        computing += (len(architecture.vace_layers) + 1) * square + 4 * architecture.vace_in_channels * d + d
    if architecture.image_tokens:
        float32 += _IMAGE_WIDTH * _IMAGE_WIDTH + _IMAGE_WIDTH * (d + 3) + 3 * d
        float32 += architecture.image_tokens * _IMAGE_WIDTH if architecture.image_tokens > 257 else 0
    return Parameters(computing=computing, float32=float32)


def text_encoder_parameters(sizes: TextEncoderSizes | None = None) -> int:
    """Of umT5's encoder."""
    s = sizes or TextEncoderSizes()
    layer = 4 * s.dim * s.num_heads * s.head_dim + 3 * s.dim * s.ffn_dim + 2 * s.dim + 32 * s.num_heads
    return s.vocab_size * s.dim + s.num_layers * layer + s.dim


def image_encoder_parameters(sizes: ImageEncoderSizes | None = None) -> int:
    """Of the part of CLIP's visual tower that is run."""
    s = sizes or ImageEncoderSizes()
    layer = 4 * (s.dim**2 + s.dim) + 2 * s.dim * s.ffn_dim + s.ffn_dim + 5 * s.dim
    return s.dim * (3 * 14**2 + 1 + 257 + 2) + s.num_layers * layer


@dataclass(frozen=True, kw_only=True)
class DenoiseMemory:
    """Of one rank."""

    weights: float
    context: float
    activations: float
    overhead: float

    @property
    def total(self) -> float:
        """The peak."""
        return self.weights + self.context + self.activations + self.overhead


def denoise_memory(
    architecture: DiTArchitecture,
    bucket: Bucket,
    *,
    degrees: Degrees,
    fsdp: bool = False,
    offload_blocks: bool = False,
    dtype_bytes: int = 2,
    quantization: Quantization = "none",
) -> DenoiseMemory:
    """Of the busiest rank of a gang that renders one clip.

    fsdp divides the weights among all ranks; offload_blocks keeps the blocks in host memory. Either way a few blocks
    at a time are whole. quantization goes with neither; float8's activations count as quantized, on any GPU.
    """
    tokens = -(-bucket.num_tokens // degrees.sequence)
    texts = bucket.num_texts // min(bucket.num_texts, degrees.cfg)
    weights = _resident_weights(
        architecture, ranks=degrees.world_size if fsdp else 1, offload_blocks=offload_blocks, dtype_bytes=dtype_bytes
    )
    saved = num_blocks(architecture) * _saved_by_quantization(architecture, quantization, dtype_bytes)
    quantizing = quantization == "float8" and dtype_bytes == 2
    return DenoiseMemory(
        weights=weights - saved,
        context=texts * _context_bytes(architecture, tokens, dtype_bytes) + _solver_bytes(bucket),
        activations=FRAGMENTATION
        * _activation_bytes(architecture, tokens, degrees, dtype_bytes, quantizing=quantizing),
        overhead=CONTEXT_BYTES + (NCCL_BYTES if degrees.world_size > 1 else 0),
    )


def _resident_weights(architecture: DiTArchitecture, *, ranks: int, offload_blocks: bool, dtype_bytes: int) -> float:
    """On one GPU: all; or its share, and whole what is at work, which is all but the blocks and a few of those."""
    whole = dit_parameters(architecture).num_bytes(dtype_bytes)
    block = dit_block_parameters(architecture).num_bytes(dtype_bytes)
    if ranks == 1 and not offload_blocks:
        return whole
    hint = architecture.dim**2 * dtype_bytes if architecture.vace_layers else 0
    at_work = whole - num_blocks(architecture) * block + _BLOCKS_AT_WORK * (block + hint)
    return at_work if offload_blocks else at_work + whole / ranks


def _context_bytes(architecture: DiTArchitecture, tokens: int, dtype_bytes: int) -> float:
    """Keys and values of one text and its images in every block, and VACE's control tokens."""
    length = TEXT_TOKENS + architecture.image_tokens
    control = tokens * architecture.dim * _FLOAT32 if architecture.vace_layers else 0
    return num_blocks(architecture) * 2 * length * architecture.dim * dtype_bytes + control


def _solver_bytes(bucket: Bucket) -> float:
    """Latents, velocities and the solver's history: at most eight in float32, and an image's or control's input."""
    return (8 * 16 + 20) * bucket.num_latent_frames * bucket.num_pixels // 64 * _FLOAT32


def _activation_bytes(
    architecture: DiTArchitecture, tokens: int, degrees: Degrees, dtype_bytes: int, *, quantizing: bool
) -> float:
    """The most that one pass has alive: in the feed-forward of a wide model, else while keys are normed and turned.

    Per token and channel: residuals before and after attention 8 and the input of the feed-forward; of attention the
    float32 copies. VACE's second stream adds 8. An exchange of tokens for heads holds queries, keys and values three
    times; a ring holds two rounds of keys and values and sums in float32.
    """
    hidden = architecture.ffn_dim / architecture.dim * (_QUANTIZING_BYTES if quantizing else 2 * dtype_bytes)
    at_feed_forward, at_attention = 8 + dtype_bytes + hidden, 12 + 6 * dtype_bytes
    if degrees.ulysses > 1:
        at_attention = max(at_attention, 4 + 10 * dtype_bytes)
    if degrees.ring > 1:
        at_attention = max(at_attention, 16 + 10 * dtype_bytes)
    stream = 8 if architecture.vace_layers else 0
    rotary = tokens * architecture.dim / architecture.num_heads * _FLOAT32
    return tokens * architecture.dim * (max(at_feed_forward, at_attention) + stream) + rotary


def encode_memory(architecture: DiTArchitecture, bucket: Bucket, *, dtype_bytes: int = 2) -> float:
    """Of a worker with umT5, and the VAE and CLIP where the model has an image or a control."""
    total = text_encoder_parameters() * dtype_bytes + CONTEXT_BYTES
    if architecture.image_tokens or architecture.vace_layers:
        # The clip in float32; VACE has it beside what is kept or changed of it, and the mask.
        per_frame = 12 if architecture.image_tokens else 32
        live = _ENCODE_BYTES + per_frame * bucket.num_frames
        total += VAE_PARAMETERS * _FLOAT32 + FRAGMENTATION * live * bucket.num_pixels
    if architecture.image_tokens:
        total += image_encoder_parameters() * _FLOAT32
    return total


def decode_memory(bucket: Bucket, *, tile: int | None = None) -> float:
    """Of a worker with the VAE, which decodes tiles of at most so many pixels each way at a time if a tile is given."""
    live = _DECODE_FIRST_BYTES if bucket.num_frames == 1 else _DECODE_BYTES
    features = live * bucket.num_pixels
    if tile is not None:
        shape = bucket.sized()
        pixels = _tile_edge(shape.width, tile) * _tile_edge(shape.height, tile)
        features = max(live * pixels, _UNTILED_BYTES * bucket.num_pixels)
    return VAE_PARAMETERS * _FLOAT32 + FRAGMENTATION * features + CONTEXT_BYTES


def _tile_edge(size: int, tile: int) -> int:
    """Pixels of the longest of equal tiles, with its borders on the others."""
    latents = size // 8
    count = -(-latents // (tile // 8))
    return min(size, 8 * -(-latents // count) + min(count - 1, 2) * _TILE_BORDER)
