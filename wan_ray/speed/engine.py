"""Each part of a model, timed by itself with random weights on this machine."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_ray.costs.bucket import Bucket
from wan_ray.costs.flops import (
    TEXT_TOKENS,
    dit_block,
    dit_context,
    dit_pass,
    image_encoder_flops,
    num_blocks,
    text_encoder_flops,
    vae_decode_flops,
    vae_encode_flops,
)
from wan_ray.costs.memory import FRAGMENTATION, denoise_memory
from wan_ray.degrees import Degrees
from wan_ray.model.attention import WHOLE, attend
from wan_ray.model.attention_kernels import attention_kernels, measured_kernels
from wan_ray.model.blocks import Block
from wan_ray.model.dit import Context
from wan_ray.model.fused import elementwise_kernels, num_compiled, plain_pytorch
from wan_ray.model.rope import rotary_table
from wan_ray.parallel.offload import BlockOffload
from wan_ray.sampling.loop import denoise, guided
from wan_ray.speed.account import Account, account_of_block
from wan_ray.speed.clock import Timed, Work, copy_rate, product_rate, timed
from wan_ray.speed.random_models import (
    Sizes,
    random_context,
    random_dit,
    random_image_encoder,
    random_latents,
    random_text_encoder,
    random_vae,
)
from wan_ray.speed.settings import Settings
from wan_ray.variants import DiTArchitecture, Quantization

_TIMESTEP, _GUIDANCE, _FLOW_SHIFT = 500, 5.0, 5.0
BLOCK, STEP = "DiT block", "step"
PLAIN = "torch"

Say = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One part. flops: of one run, None where it is not about products; predicted_bytes: of its peak by costs/memory.

    float32: it computes in that, whatever the settings say, so it has no utilisation of another dtype's rate.
    """

    name: str
    timed: Timed
    flops: float | None = None
    predicted_bytes: float | None = None
    float32: bool = False


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All figures. Rates are per second, at best. lacking: parts that could not be measured, and why.

    accounts: of one block by what does its element-wise work, "triton" or "torch". compiled_by_another_row: kernels
    that a second clip of the same shape compiled.
    """

    sizes: Sizes
    dtype: torch.dtype
    device: torch.device
    product_rate: float
    copy_rate: float
    figures: list[Figure]
    accounts: dict[str, Account]
    compiled_by_another_row: int | None
    lacking: dict[str, str]

    def figure(self, name: str) -> Figure | None:
        """The one of that name, if it was measured."""
        return next((figure for figure in self.figures if figure.name == name), None)

    def reckoned_step_ms(self, layers: DiTArchitecture) -> float | None:
        """Of a model with all its layers: a measured step of fewer, and a measured block for each that it lacks."""
        block, step = self.figure(BLOCK), self.figure(STEP)
        if block is None or step is None:
            return None
        return step.timed.ms + 2 * block.timed.ms * (num_blocks(layers) - num_blocks(self.sizes.dit))


@torch.inference_mode()
def measure(settings: Settings, say: Say) -> Measured:
    """Part by part; say: is told each figure's name as it is begun."""
    device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = getattr(torch, settings.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    sizes = Sizes.of(settings.variant, settings.num_layers)
    bucket = Bucket(
        settings.variant.name, settings.variant.tasks[0], settings.width, settings.height, settings.num_frames, 50
    )
    torch.manual_seed(0)
    say("best rates of this device")
    rates = {"product_rate": product_rate(device, dtype), "copy_rate": copy_rate(device)}
    figures: list[Figure] = []
    accounts: dict[str, Account] = {}
    recompiled: int | None = None
    lacking: dict[str, str] = {}
    if "dit" in settings.parts:
        bench = _DiTBench(sizes.dit, bucket, device, dtype, settings.quantization)
        figures += bench.figures(say, lacking)
        figures += bench.attention_kernels(say)
        recompiled = bench.compiled_by_another_row()
        accounts[elementwise_kernels(device)] = bench.account(say, rates)
        if elementwise_kernels(device) != PLAIN:
            with plain_pytorch():
                figures += bench.plain(say)
                accounts[PLAIN] = bench.account(say, rates)
        if settings.quantization == "none":
            figures.append(bench.offloaded(say))
        del bench
    for part, others in (("vae", _vae_figures), ("text", _text_figures)):
        if part in settings.parts:
            try:
                figures += others(sizes, bucket, device, dtype, say)
            except (ImportError, torch.OutOfMemoryError) as error:
                lacking[part] = f"{error}"
    return Measured(
        sizes=sizes,
        dtype=dtype,
        device=device,
        figures=figures,
        accounts=accounts,
        compiled_by_another_row=recompiled,
        lacking=lacking,
        **rates,
    )


class _DiTBench:
    """A random DiT with one clip's contexts, of a prompt and of a negative prompt."""

    def __init__(
        self,
        sizes: DiTArchitecture,
        bucket: Bucket,
        device: torch.device,
        dtype: torch.dtype,
        quantization: Quantization,
    ) -> None:
        self._sizes, self._bucket, self._device, self._dtype = sizes, bucket, device, dtype
        self._quantization: Quantization = quantization
        self._model = random_dit(sizes, device, dtype, quantization)
        self._contexts = [random_context(self._model, bucket, device) for _ in range(2)]
        self._latents = random_latents(bucket, device)

    def figures(self, say: Say, lacking: dict[str, str]) -> Iterator[Figure]:
        """What has no room on the device is left out, and noted as lacking."""
        sizes, n, quantized = self._sizes, self._bucket.num_tokens, self._quantization != "none"
        one = dit_pass(sizes, n)
        parts: list[tuple[str, Callable[[], Work], float]] = [
            ("text keys and values", lambda: self._encode, dit_context(sizes, n)),
            ("q, k, v: three products", self._three_products, 6 * n * sizes.dim**2),
            *([] if quantized else [("q, k, v: one product", self._one_product, 6 * n * sizes.dim**2)]),
            ("self-attention", self._attention, 4 * n * n * sizes.dim),
            (BLOCK, self.block, dit_block(sizes, n).flops),
            ("DiT pass", lambda: lambda: self._model(self._latents, _TIMESTEP, self._contexts[0]), one.flops),
            ("two passes as one batch", self._batched, 2 * one.flops),
            (STEP, lambda: self._step, 2 * one.flops),
        ]
        for name, make, flops in parts:
            say(name)
            try:
                found = timed(make(), self._device)
            except torch.OutOfMemoryError as error:
                lacking[name] = f"{error}"
                continue
            predicted = self._predicted_bytes(offload_blocks=False) if name == STEP else None
            yield Figure(name=name, timed=found, flops=flops, predicted_bytes=predicted)

    def offloaded(self, say: Say) -> Figure:
        """A step with the blocks in host memory."""
        name = "step, blocks offloaded"
        say(name)
        with torch.inference_mode(mode=False):
            offload = BlockOffload(self._model, self._model.blocks_in_order(), self._device)
        found = timed(self._step, self._device)
        offload.end()
        flops = 2 * dit_pass(self._sizes, self._bucket.num_tokens).flops
        return Figure(name=name, timed=found, flops=flops, predicted_bytes=self._predicted_bytes(offload_blocks=True))

    def attention_kernels(self, say: Say) -> Iterator[Figure]:
        """Self-attention by each kernel that works here, of which the DiT has chosen one."""
        if self._device.type != "cuda":  # which has no choice
            return
        flops = 4 * self._bucket.num_tokens**2 * self._sizes.dim
        q, k, v = self._queries_keys_values()
        for name in measured_kernels(q, k, v)[0]:
            say(f"self-attention by {name}")
            kernel = attention_kernels()[name]
            found = timed(lambda kernel=kernel: kernel(q, k, v), self._device)
            yield Figure(name=f"self-attention by {name}", timed=found, flops=flops)

    def plain(self, say: Say) -> Iterator[Figure]:
        """What differs without Triton's kernels."""
        sizes, n = self._sizes, self._bucket.num_tokens
        for name, work, flops in (
            (f"{BLOCK}, plain PyTorch", self.block(), dit_block(sizes, n).flops),
            (f"{STEP}, plain PyTorch", self._step, 2 * dit_pass(sizes, n).flops),
        ):
            say(name)
            yield Figure(name=name, timed=timed(work, self._device), flops=flops)

    def account(self, say: Say, rates: dict[str, float]) -> Account:
        """What a block's time goes to."""
        say("what a block's time goes to")
        work = dit_block(self._sizes, self._bucket.num_tokens)
        return account_of_block(self.block(), work, self._device, **rates)

    def compiled_by_another_row(self) -> int:
        """Kernels that a clip of the same shape, with another text and other timesteps, has compiled anew."""
        before = num_compiled(self._device)
        context, latents = random_context(self._model, self._bucket, self._device), self._latents + 1
        for timestep in (999, 1):
            self._model(latents, timestep, context)
        return num_compiled(self._device) - before

    def block(self) -> Work:
        """One block on the clip's tokens."""
        sizes, bucket, block = self._sizes, self._bucket, self._first_block()
        grid = (bucket.num_latent_frames, bucket.height // 16, bucket.width // 16)
        rotary = rotary_table(grid, sizes.dim // sizes.num_heads, self._device)
        tokens = torch.randn(1, bucket.num_tokens, sizes.dim, device=self._device)
        time, sources = torch.zeros(1, 6, sizes.dim, device=self._device), self._contexts[0].blocks[0]
        block(tokens, time, rotary, sources, WHOLE)  # now, so that choosing kernels does not count
        return lambda: block(tokens, time, rotary, sources, WHOLE)

    def _first_block(self) -> Block:
        block = self._model.blocks[0]
        assert isinstance(block, Block)
        return block

    def _encode(self) -> Context:
        return random_context(self._model, self._bucket, self._device)

    def _step(self) -> Tensor:
        model, (conditional, unconditional) = self._model, self._contexts
        velocity = guided(lambda x, t: model(x, t, conditional), lambda x, t: model(x, t, unconditional), _GUIDANCE)
        return denoise(velocity, self._latents, solver="unipc", num_inference_steps=1, flow_shift=_FLOW_SHIFT)

    def _batched(self) -> Work:
        """Both passes' contexts joined along the batch."""
        joined = _joined(*self._contexts)
        latents = self._latents.expand(2, -1, -1, -1, -1)
        return lambda: self._model(latents, _TIMESTEP, joined)

    def _normed_tokens(self) -> Tensor:
        return torch.randn(1, self._bucket.num_tokens, self._sizes.dim, device=self._device, dtype=self._dtype)

    def _three_products(self) -> Work:
        attention, x = self._first_block().self_attn, self._normed_tokens()
        return lambda: (attention.q(x), attention.k(x), attention.v(x))

    def _one_product(self) -> Work:
        attention, x = self._first_block().self_attn, self._normed_tokens()
        linears = (attention.q, attention.k, attention.v)
        weight, bias = torch.cat([x.weight for x in linears]), torch.cat([x.bias for x in linears])
        return lambda: F.linear(x, weight, bias)

    def _attention(self) -> Work:
        q, k, v = self._queries_keys_values()
        attend(q, k, v)  # now, so that choosing a kernel does not count
        return lambda: attend(q, k, v)

    def _queries_keys_values(self) -> list[Tensor]:
        shape = (1, self._bucket.num_tokens, self._sizes.num_heads, self._sizes.dim // self._sizes.num_heads)
        return [torch.randn(shape, device=self._device, dtype=self._dtype) for _ in range(3)]

    def _predicted_bytes(self, *, offload_blocks: bool) -> float:
        """By the tensors alone, as torch counts what it allocates."""
        size = torch.empty((), dtype=self._dtype).element_size()
        memory = denoise_memory(
            self._sizes,
            self._bucket,
            degrees=Degrees(),
            offload_blocks=offload_blocks,
            dtype_bytes=size,
            quantization=self._quantization,
        )
        return memory.weights + memory.context + memory.activations / FRAGMENTATION


def _joined(first: Context, second: Context) -> Context:
    def pairs(one: list, other: list) -> list:
        return [
            tuple(tuple(torch.cat(both) for both in zip(*sources, strict=True)) for sources in zip(a, b, strict=True))
            for a, b in zip(one, other, strict=True)
        ]

    def twice(x: Tensor | None) -> Tensor | None:
        return None if x is None else torch.cat([x, x])

    return replace(
        first,
        blocks=pairs(first.blocks, second.blocks),
        vace_blocks=pairs(first.vace_blocks, second.vace_blocks),
        condition=twice(first.condition),
        control=twice(first.control),
    )


def _vae_figures(sizes: Sizes, bucket: Bucket, device: torch.device, dtype: torch.dtype, say: Say) -> list[Figure]:
    vae = random_vae(sizes.vae, device)
    latents = random_latents(bucket, device)
    video = torch.rand(1, 3, bucket.num_frames, bucket.height, bucket.width, device=device)
    shape = (bucket.width, bucket.height, bucket.num_frames, sizes.vae)
    say("VAE")
    decoded = timed(lambda: [None for _ in vae.decode_chunks(latents)], device)
    encoded = timed(lambda: vae.encode(video), device)
    return [
        Figure(name="VAE decode", timed=decoded, flops=vae_decode_flops(*shape), float32=True),
        Figure(name="VAE encode", timed=encoded, flops=vae_encode_flops(*shape), float32=True),
    ]


def _text_figures(sizes: Sizes, bucket: Bucket, device: torch.device, dtype: torch.dtype, say: Say) -> list[Figure]:
    """And of CLIP, where the model has an image."""
    say("text encoder")
    encoder = random_text_encoder(sizes.text, device, dtype)
    ids = torch.zeros(1, TEXT_TOKENS, dtype=torch.long, device=device)
    mask = torch.ones_like(ids)
    found = timed(lambda: encoder(input_ids=ids, attention_mask=mask), device)
    figures = [
        Figure(
            name=f"text encoder, {TEXT_TOKENS} tokens", timed=found, flops=text_encoder_flops(TEXT_TOKENS, sizes.text)
        )
    ]
    if sizes.dit.image_tokens:
        image_encoder = random_image_encoder(sizes.image, device)
        image = torch.rand(1, 3, 224, 224, device=device)
        found = timed(lambda: image_encoder(image), device)
        figures.append(Figure(name="image encoder", timed=found, flops=image_encoder_flops(sizes.image), float32=True))
    return figures
