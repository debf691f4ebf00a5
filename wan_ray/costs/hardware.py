"""What GPUs do per second, and where each figure is from. Nothing here was measured by this project.

matmul: dense bfloat16. H100, H200 and A100 are the best matrix products that mamf-finder found (stas00/ml-engineering,
compute/accelerator: 794.5 and 271.2 TFLOP/s, torch 2.6 and 2.7). L40S and A10G: 80 % of the data sheet's 362 and 70,
as H100 reaches of its own; assumed.
attention: forward, head width 128, as torch's scaled_dot_product_attention runs it (FlashAttention-2). H100: 370, a
figure of the FlashAttention-3 paper. A100: 73 % of peak, the FlashAttention-2 paper. L40S and A10G: 66 % of peak, what
Wan2.1's published time on an RTX 4090 comes to; assumed.
bandwidth and tf32: data sheets, dense.
link: bytes a GPU sends a second to others of its node, as fits Wan2.1's published times on 1 to 8 GPUs (NVLink 4 330,
NVLink 3 220) or assumed (PCIe 4 with peer access 20, without 10). network: to another node: 400 Gb/s InfiniBand per
GPU for H100 and H200, 200 for A100, as in DGX; 400 and 100 Gb/s per node of eight for L40S and A10G, as AWS lends them.
host: from pinned memory over PCIe 5 and 4.
"""

from dataclasses import dataclass, replace

T, G = 1e12, 1e9

# The share of those rates that a plain PyTorch engine reaches: fits Wan2.1's published 1837.9 s on one H800 and
# 3342.6 s on one A100 for T2V-14B at 720P, without the 45 s in which its DiT does not run, within 2 %.
ENGINE = 0.89
# FLOP/s of the float32 VAE over the TF32 peak: 639 TFLOP in 9.5 s at 720P on an H100 (sglang #18540).
VAE_SHARE = 0.136


@dataclass(frozen=True, kw_only=True)
class GPU:
    """Bytes, and FLOP or bytes per second."""

    memory: float
    matmul: float
    attention: float
    tf32: float
    bandwidth: float
    link: float
    network: float
    host: float
    latency_s: float = 14e-6


_A100 = GPU(
    memory=80 * G,
    matmul=271.2 * T,
    attention=228 * T,
    tf32=156 * T,
    bandwidth=2039 * G,
    link=220 * G,
    network=21 * G,
    host=22 * G,
)
_H100 = GPU(
    memory=80 * G,
    matmul=794.5 * T,
    attention=370 * T,
    tf32=494 * T,
    bandwidth=3350 * G,
    link=330 * G,
    network=42 * G,
    host=45 * G,
)


GPUS: dict[str, GPU] = {
    "A10G-24GB": GPU(
        memory=24 * G,
        matmul=56 * T,
        attention=46 * T,
        tf32=35 * T,
        bandwidth=600 * G,
        link=10 * G,
        network=1.5 * G,
        host=12 * G,
        latency_s=25e-6,
    ),
    "A100-40GB": replace(_A100, memory=40 * G, bandwidth=1555 * G),
    "L40S-48GB": GPU(
        memory=48 * G,
        matmul=290 * T,
        attention=239 * T,
        tf32=183 * T,
        bandwidth=864 * G,
        link=20 * G,
        network=6 * G,
        host=22 * G,
        latency_s=20e-6,
    ),
    "A100-80GB": _A100,
    "H100-80GB": _H100,
    "H200-141GB": replace(_H100, memory=141 * G, bandwidth=4800 * G),
}
