"""What images, frames and masks become before the DiT: the condition of I2V and FLF2V, and the context of VACE.

C: channels, F: frames, T: latent frames, H, W: rows and columns of pixels, h, w: of latents. Pixels are in [-1, 1].
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_ray.model.vae import WanVAE

_CELL = 8  # pixels of one latent, each way
_CONTEXT_CHANNELS = 96  # inactive 16, reactive 16, mask 64


def first_frame_condition(
    vae: WanVAE,
    first_CHW: Tensor,
    *,
    width: int,
    height: int,
    num_frames: int,
    last_CHW: Tensor | None = None,
    tile: int | None = None,
) -> Tensor:
    """Mask 4 and latents 16 of a clip that is gray but for its first (and last) frame: [20, T, h, w].

    Images are stretched to the clip's size; bring a last frame to the first one's aspect with fit_last_frame. A mask
    channel is one of a latent frame's four frames, 1 where that frame is given. RequestError unless frames are 4n+1.
    tile: pixels each way that the VAE encodes at a time.
    """
    parameter = next(vae.parameters())
    video_BCFHW = parameter.new_zeros(1, 3, num_frames, height, width)
    given_F = parameter.new_zeros(num_frames)
    for index, image_CHW in ((0, first_CHW), (-1, last_CHW)):
        if image_CHW is not None:
            video_BCFHW[0, :, index] = F.interpolate(image_CHW[None].float(), (height, width), mode="bicubic")[0]
            given_F[index] = 1
    latents_CThw = vae.encode(video_BCFHW, tile=tile and tile // _CELL)[0]
    # The first latent frame is one frame, not four: its mask stands in all four channels.
    stride = vae.architecture.temporal_stride
    mask_CT = torch.cat([given_F[:1].expand(stride - 1), given_F]).unflatten(0, (-1, stride)).T
    return torch.cat([mask_CT[..., None, None].expand(-1, -1, *latents_CThw.shape[2:]), latents_CThw])


def fit_last_frame(last_CHW: Tensor, *, width: int, height: int) -> Tensor:
    """The last frame at the first one's size: resized until it covers that, and the middle of it."""
    _, rows, columns = last_CHW.shape
    if (columns, rows) == (width, height):
        return last_CHW
    scale = max(width / columns, height / rows)
    size = (round(rows * scale), round(columns * scale))
    resized_CHW = F.interpolate(last_CHW[None].float(), size, mode="bicubic", antialias=True)[0].clamp_(-1, 1)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return resized_CHW[:, top : top + height, left : left + width]


def compat_last_frame_crop(last_CHW: Tensor, *, width: int, height: int) -> Tensor:
    """The last frame as the release treats it beside a first one of another size, in place of fit_last_frame.

    Cropped where it should be resized, to the resized size with its sides swapped, and gray where it ends: Wan2.1
    first_last_frame2video.py:204-214 (9737cba).
    """
    _, rows, columns = last_CHW.shape
    if (columns, rows) == (width, height):
        return last_CHW
    scale = max(width / columns, height / rows)
    size = (round(columns * scale), round(rows * scale))
    # As torchvision's center_crop: an odd pixel of padding goes right or below, an odd half is rounded to even.
    rows_short, columns_short = max(0, size[0] - rows), max(0, size[1] - columns)
    padding = (columns_short // 2, (columns_short + 1) // 2, rows_short // 2, (rows_short + 1) // 2)
    padded_CHW = F.pad(last_CHW, padding)
    top, left = (round((have - kept) / 2) for have, kept in zip(padded_CHW.shape[1:], size, strict=True))
    return padded_CHW[:, top : top + size[0], left : left + size[1]]


def vace_context(
    vae: WanVAE,
    frames_CFHW: Tensor | None,
    mask_FHW: Tensor | None,
    references: Sequence[Tensor],
    *,
    width: int,
    height: int,
    num_frames: int,
    tile: int | None = None,
) -> Tensor:
    """VACE's context [96, T + references, h, w]: what is kept 16, what is changed 16, mask 64; references first.

    The mask is in [0, 1], 1 where the picture is to change; without one all is, and without frames they are gray.
    References are [3, H, W] of the clip's size (letterbox_reference). The latents see the mask cut at 0.5, the mask
    channels see it as it is: Wan2.1 vace.py:137-205 (9737cba). RequestError unless frames are 4n+1.
    tile: pixels each way that the VAE encodes at a time.
    """
    parameter = next(vae.parameters())
    frames = parameter.new_zeros(3, num_frames, height, width) if frames_CFHW is None else frames_CFHW.to(parameter)
    mask = parameter.new_ones(num_frames, height, width) if mask_FHW is None else mask_FHW.to(parameter)
    changes, most = mask > 0.5, tile and tile // _CELL
    kept_CThw, changed_CThw = (
        vae.encode(frames.masked_fill(hidden, 0)[None], tile=most)[0] for hidden in (changes, changes.logical_not())
    )
    references_CThw = [vae.encode(image_CHW.to(parameter)[None, :, None], tile=most)[0] for image_CHW in references]
    # A reference has no changed part and no mask: zeros in all channels that follow.
    padded = [F.pad(latent, (0, 0, 0, 0, 0, 0, 0, _CONTEXT_CHANNELS - len(latent))) for latent in references_CThw]
    clip_CThw = torch.cat([kept_CThw, changed_CThw, _mask_channels(mask, num_latent_frames=kept_CThw.shape[1])])
    return torch.cat([*padded, clip_CThw], dim=1)


def letterbox_reference(image_CHW: Tensor, *, width: int, height: int) -> Tensor:
    """The whole image, as large as it fits, in the middle of a white canvas: [3, H, W]. Wan2.1 vace.py (9737cba)."""
    _, rows, columns = image_CHW.shape
    if (columns, rows) == (width, height):
        return image_CHW
    scale = min(height / rows, width / columns)
    size = (max(1, int(rows * scale)), max(1, int(columns * scale)))
    canvas_CHW = image_CHW.new_ones(3, height, width)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    resized_CHW = F.interpolate(image_CHW[None], size, mode="bilinear", align_corners=False)[0]
    canvas_CHW[:, top : top + size[0], left : left + size[1]] = resized_CHW
    return canvas_CHW


def _mask_channels(mask_FHW: Tensor, *, num_latent_frames: int) -> Tensor:
    """[64, T, h, w]: a channel for every place in a cell of 8x8 pixels.

    Frames are dropped, not joined, and neither the first nor the last of a longer clip is among those that stay: the
    model was trained so.
    """
    _, height, width = mask_FHW.shape
    mask_THW = F.interpolate(mask_FHW[None, None], (num_latent_frames, height, width), mode="nearest-exact")[0, 0]
    cells = mask_THW.unflatten(2, (-1, _CELL)).unflatten(1, (-1, _CELL))  # T h row w column
    return cells.permute(2, 4, 0, 1, 3).flatten(0, 1)
