"""Memory against our own modules: parameters to the digit, live and moved bytes as counted op by op on meta."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wan_ray.costs.bucket import Bucket
from wan_ray.costs.flops import ImageEncoderSizes, TextEncoderSizes, dit_pass
from wan_ray.costs.memory import (
    CONTEXT_BYTES,
    FRAGMENTATION,
    GB,
    VAE_PARAMETERS,
    decode_memory,
    denoise_memory,
    dit_block_parameters,
    dit_parameters,
    encode_memory,
    image_encoder_parameters,
    text_encoder_parameters,
)
from wan_ray.costs.table import memory_table
from wan_ray.degrees import Degrees
from wan_ray.model.debug import DebugSizes
from wan_ray.model.dit import DiT, parameter_dtype
from wan_ray.model.image_encoder import ImageEncoderArchitecture, build_image_encoder
from wan_ray.model.quantize import quantizer
from wan_ray.model.text_encoder import TextEncoderArchitecture, build_text_encoder
from wan_ray.model.vae import VAEArchitecture, WanVAE
from wan_ray.variants import VARIANTS, DiTArchitecture, Quantization

RELEASED = ("t2v-1.3B", "t2v-14B", "i2v-14B-720P", "flf2v-14B", "vace-1.3B", "vace-14B")
README = Path(__file__).parents[2] / "README.md"
_QUANTIZATIONS: tuple[Quantization, ...] = ("none", "int8", "float8")
_PRODUCTS = ("linear", "addmm", "convolution", "new_empty", "clone", "contiguous")


class LiveBytes(TorchDispatchMode):
    """Counts bytes of storages that ops make, and what they read and write beside products and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.moved = 0
        self._watched: dict[int, object] = {}

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        inputs, outputs = ([x for x in tree_leaves(tree) if isinstance(x, Tensor)] for tree in ((args, kwargs), out))
        before = {x.untyped_storage()._cdata for x in inputs}
        made = [x for x in outputs if x.untyped_storage()._cdata not in before]
        if made and op.overloadpacket.__name__ not in _PRODUCTS:
            self.moved += sum(x.nbytes for x in (*inputs, *outputs))
        for x in made:
            self._watch(x.untyped_storage())
        return out

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key, size_bytes = id(storage), storage.nbytes()
        if key in self._watched:
            return

        def gone(_: object) -> None:
            self.live -= size_bytes
            del self._watched[key]

        self.live += size_bytes
        self.peak = max(self.peak, self.live)
        self._watched[key] = weakref.ref(storage, gone)


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that makes its result only, as kernels on GPUs do; on meta torch makes the table of all pairs."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q.new_empty(q.shape).transpose(1, 2).contiguous().transpose(1, 2)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)


def architecture_of(variant: str) -> DiTArchitecture:
    found = VARIANTS[variant].architecture
    assert found is not None
    return found


def empty_dit(architecture: DiTArchitecture) -> DiT:
    with torch.device("meta"):
        model = DiT(architecture).requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(parameter_dtype(name, torch.bfloat16))
    return model


def counted(work: Callable[[], object], *, fused: bool = False) -> LiveBytes:
    """Op by op; fused: with norms as one op each, as GPUs have them."""
    with torch.device("meta"), torch.inference_mode() if fused else torch.no_grad(), LiveBytes() as live:
        work()
    return live


@pytest.mark.parametrize("kind", ["t2v", "i2v", "flf2v", "vace"])
def test_parameters_of_debug_models_are_counted_to_the_digit(kind: str) -> None:
    model = empty_dit(DebugSizes.of(kind).dit)
    held = sum(parameter.nbytes for parameter in model.parameters())
    assert dit_parameters(model.architecture).num_bytes(2) == held


@pytest.mark.parametrize("variant", RELEASED)
def test_parameters_of_released_models_are_counted_to_the_digit(variant: str) -> None:
    model = empty_dit(architecture_of(variant))
    found = dit_parameters(model.architecture)
    assert found.count == sum(parameter.numel() for parameter in model.parameters())
    assert found.num_bytes(2) == sum(parameter.nbytes for parameter in model.parameters())
    block = sum(parameter.nbytes for parameter in model.blocks[0].parameters())
    assert dit_block_parameters(model.architecture).num_bytes(2) == block


def test_parameters_of_the_other_models_are_counted_to_the_digit() -> None:
    with torch.device("meta"):
        vae = WanVAE(VAEArchitecture(base_dim=96, num_res_blocks=2))
        text = build_text_encoder(TextEncoderArchitecture(**vars(TextEncoderSizes())))
        image = build_image_encoder(ImageEncoderArchitecture(**vars(ImageEncoderSizes())))
    assert sum(p.numel() for p in vae.parameters()) == VAE_PARAMETERS
    assert sum(p.numel() for p in text.parameters()) == text_encoder_parameters()
    assert sum(p.numel() for p in image.parameters()) == image_encoder_parameters()


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("variant", RELEASED)
def test_a_pass_keeps_and_moves_as_many_bytes_as_predicted(variant: str) -> None:
    released = architecture_of(variant)  # fewer blocks, as wide: a pass keeps no more for having more of them
    architecture = replace(released, num_layers=4, vace_layers=released.vace_layers and (0, 2))
    model, bucket = empty_dit(architecture), Bucket(variant, "", 832, 480, 81, 50)
    inputs: dict[str, Tensor] = {}
    with torch.device("meta"):
        if architecture.image_tokens:
            inputs["image_features"] = torch.empty(architecture.image_tokens, 1280)
            inputs["condition"] = torch.empty(20, 21, 60, 104)
        if architecture.vace_layers:
            inputs["vace_context"] = torch.empty(96, 21, 60, 104)
        latents, text = torch.empty(1, 16, 21, 60, 104), torch.empty(512, 4096)
    contexts = []
    prepared = counted(lambda: contexts.append(model.encode_context(text, **inputs)))
    passed = counted(lambda: model(latents, 500, contexts[0]))
    moved = counted(lambda: model(latents, 500, contexts[0]), fused=True).moved
    one, two = (
        denoise_memory(architecture, bucket._replace(num_unguided_steps=unguided), degrees=Degrees())
        for unguided in (bucket.num_inference_steps, bucket.num_inference_steps - 1)
    )
    assert one.activations / FRAGMENTATION == pytest.approx(passed.peak, rel=0.03)
    assert two.context - one.context == pytest.approx(prepared.live, rel=0.01)
    assert dit_pass(architecture, bucket.num_tokens).moved_bytes == pytest.approx(moved, rel=0.05)


def quantized_(model: DiT, quantization: Quantization) -> None:
    quantize = quantizer(quantization, dtype=torch.bfloat16, device=torch.device("meta"))
    assert quantize is not None
    for name, module in model.named_modules():
        quantize(f"{name}.weight", module)


def held_bytes(tensor: Tensor) -> int:
    """Of a tensor, or of those that a quantized one is made of."""
    parts = [part for part in vars(tensor).values() if isinstance(part, Tensor)]
    return sum(part.nbytes for part in parts) if parts else tensor.nbytes


@pytest.mark.parametrize("quantization", ["int8", "float8"])
@pytest.mark.parametrize("variant", ["t2v-1.3B", "i2v-14B-720P", "vace-14B"])
def test_quantized_weights_are_counted_to_the_digit(variant: str, quantization: Quantization) -> None:
    released = architecture_of(variant)
    architecture = replace(released, num_layers=4, vace_layers=released.vace_layers and (0, 2))
    model, bucket = empty_dit(architecture), Bucket(variant, "", 832, 480, 81, 50)
    quantized_(model, quantization)
    found = denoise_memory(model.architecture, bucket, degrees=Degrees(), quantization=quantization)
    assert found.weights == sum(map(held_bytes, model.parameters()))
    weights = (denoise_memory(released, bucket, degrees=Degrees(), quantization=q).weights for q in _QUANTIZATIONS)
    whole, *others = weights
    assert all(0.5 < other / whole < 0.54 for other in others)


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("variant", ["t2v-1.3B", "t2v-14B", "vace-14B"])
def test_a_pass_of_quantized_layers_keeps_as_many_bytes_as_predicted(variant: str) -> None:
    released = architecture_of(variant)
    architecture = replace(released, num_layers=2, vace_layers=released.vace_layers and (0,))
    bucket = Bucket(variant, "", 832, 480, 81, 50)

    def peak(quantize: Callable[[DiT], None]) -> int:
        model, contexts = empty_dit(architecture), []
        quantize(model)
        with torch.device("meta"):
            control = {"vace_context": torch.empty(96, 21, 60, 104)} if architecture.vace_layers else {}
            latents, text = torch.empty(1, 16, 21, 60, 104), torch.empty(512, 4096)
        counted(lambda: contexts.append(model.encode_context(text, **control)))
        return counted(lambda: model(latents, 500, contexts[0])).peak

    def with_activations(model: DiT) -> None:
        """As Float8DynamicActivationFloat8WeightConfig, which torchao refuses without such a GPU."""
        from torchao.float8.inference import Float8MMConfig
        from torchao.quantization import PerRow
        from torchao.quantization.quantize_.workflows.float8.float8_tensor import QuantizeTensorToFloat8Kwargs

        quantized_(model, "float8")
        for weight in model.parameters():
            if hasattr(weight, "act_quant_kwargs"):
                weight.mm_config = Float8MMConfig(use_fast_accum=True)
                weight.act_quant_kwargs = QuantizeTensorToFloat8Kwargs(granularity=PerRow(), mm_config=weight.mm_config)

    def predicted(quantization: Quantization) -> float:
        found = denoise_memory(architecture, bucket, degrees=Degrees(), quantization=quantization)
        return found.activations / FRAGMENTATION

    assert predicted("int8") == pytest.approx(peak(lambda model: quantized_(model, "int8")), rel=0.03)
    assert predicted("float8") == pytest.approx(peak(with_activations), rel=0.03)


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize(("width", "height", "num_frames"), [(832, 480, 9), (1280, 720, 9), (1024, 1024, 1)])
def test_the_vae_keeps_as_many_bytes_as_predicted(
    width: int, height: int, num_frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "equal", lambda *_: False)  # frames that move; on meta they cannot be compared
    bucket = Bucket("i2v-14B-720P", "i2v", width, height, num_frames, 40)
    with torch.device("meta"):
        vae = WanVAE(VAEArchitecture(base_dim=96, num_res_blocks=2))
        latents = torch.empty(1, 16, bucket.num_latent_frames, height // 8, width // 8)
        video = torch.empty(1, 3, num_frames, height, width)
    decoded = counted(lambda: [None for _ in vae.decode_chunks(latents)])
    fixed = 4 * VAE_PARAMETERS + CONTEXT_BYTES
    assert decode_memory(bucket) == pytest.approx(fixed + FRAGMENTATION * decoded.peak, rel=0.02)
    if num_frames > 1:
        encoded = counted(lambda: vae.encode(video))
        others = 2 * text_encoder_parameters() + 4 * image_encoder_parameters()
        peak = fixed + others + FRAGMENTATION * (encoded.peak + video.nbytes)
        assert encode_memory(architecture_of(bucket.variant), bucket) == pytest.approx(peak, rel=0.02)


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize(("width", "height", "num_frames", "tile"), [(832, 480, 5, 256), (1024, 1024, 1, 512)])
def test_the_vae_keeps_as_many_bytes_as_predicted_in_tiles(width: int, height: int, num_frames: int, tile: int) -> None:
    bucket = Bucket("t2v-14B", "t2v", width, height, num_frames, 40)
    with torch.device("meta"):
        vae = WanVAE(VAEArchitecture(base_dim=96, num_res_blocks=2))
        latents = torch.empty(1, 16, bucket.num_latent_frames, height // 8, width // 8)
    decoded = counted(lambda: [None for _ in vae.decode_chunks(latents, tile=tile // 8)])
    # In host memory: the clip's frames, and its 384 features at the latents' scale.
    on_host = 4 * width * height * (3 * num_frames + 384 * bucket.num_latent_frames // 64)
    on_device = 4 * VAE_PARAMETERS + CONTEXT_BYTES + FRAGMENTATION * (decoded.peak - on_host)
    assert decode_memory(bucket, tile=tile) == pytest.approx(on_device, rel=0.03)
    assert decode_memory(bucket, tile=tile) < decode_memory(bucket) / 2


def test_weights_of_the_release_are_as_large_as_published() -> None:
    # GB in bfloat16, of which some parameters are float32 here; umT5; CLIP, of which the last block is not loaded.
    for variant, size in (("t2v-1.3B", 2.84), ("t2v-14B", 28.6), ("i2v-14B-720P", 32.8), ("vace-14B", 34.7)):
        assert dit_parameters(architecture_of(variant)).num_bytes(2) == pytest.approx(size * GB, rel=0.02)
    assert 2 * text_encoder_parameters() == pytest.approx(11.4 * GB, rel=0.01)
    assert 2 * image_encoder_parameters() == pytest.approx(1.3 * GB, rel=0.07)


def test_ranks_and_offload_need_less_each() -> None:
    architecture, bucket = architecture_of("t2v-14B"), Bucket("t2v-14B", "t2v", 1280, 720, 81, 50)

    def needed(degrees: Degrees, **how: bool) -> float:
        return denoise_memory(architecture, bucket, degrees=degrees, **how).total

    alone = needed(Degrees())
    assert alone == pytest.approx(39.9 * GB, rel=0.06)  # performance map, 2.3: resident bfloat16
    assert needed(Degrees(), offload_blocks=True) < alone / 2
    assert needed(Degrees(cfg=2, ulysses=4)) < alone
    assert needed(Degrees(cfg=2, ulysses=4), fsdp=True) < needed(Degrees(cfg=2, ulysses=4)) / 2
    block = dit_block_parameters(architecture).num_bytes(2)
    resident = denoise_memory(architecture, bucket, degrees=Degrees(), offload_blocks=True).weights
    assert resident == dit_parameters(architecture).num_bytes(2) - 38 * block


def test_the_readme_shows_the_predicted_memory() -> None:
    assert memory_table() in README.read_text(encoding="utf-8")
