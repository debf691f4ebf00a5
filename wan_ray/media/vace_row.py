"""From a row of task vace to what the model's side encodes: its sources are read and its mode's pictures are made.

No torch here: pictures are arrays, and can be looked at.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import cast

import numpy as np
from pydantic import JsonValue

from wan_ray.errors import RequestError
from wan_ray.media.clip_source import End, LoadedVideo, load_end, load_mask_video, load_video
from wan_ray.media.compat_source import ReleasedSource, load_as_released
from wan_ray.media.controls import box_layout, depth_control_from_disparity, gray_control, scribble_control
from wan_ray.media.image import load_image
from wan_ray.media.masks import bounding_box_mask, box_mask, expand_mask, hull_mask
from wan_ray.media.vace_inputs import (
    VaceInputs,
    control,
    cut_out,
    extend,
    inpaint,
    outpaint,
    outpaint_inner,
    outpaint_source_size,
    references_only,
    with_references,
)
from wan_ray.resolved import ResolvedRequest
from wan_ray.vace_request import (
    BoxesMode,
    ControlMode,
    ExtendMode,
    InpaintMode,
    OutpaintMode,
    ReferencesMode,
    parse_vace,
)

_HALF = 128  # from here on a gray is light


@dataclass(frozen=True, kw_only=True)
class VaceRow:
    """request: the row's, with what its sources decided: fps, and under compat size and length.

    places: for the record, which frames of the sources the clip shows and where their pixels went.
    """

    request: ResolvedRequest
    inputs: VaceInputs
    places: Mapping[str, JsonValue]


def read_vace_row(request: ResolvedRequest) -> VaceRow:
    """The row's frames, mask and references; RequestError when one of its sources cannot be used."""
    if request.compat == "released" and "control_video" in request.media:
        row = _as_released(request)
    else:
        row = _in_mode(request)
    return replace(row, inputs=with_references(row.inputs, _references(request)))


def _in_mode(request: ResolvedRequest) -> VaceRow:
    size = {"width": request.width, "height": request.height}
    match parse_vace(request.vace):
        case ControlMode() as mode:
            return _controlled(request, mode)
        case InpaintMode() as mode:
            return _inpainted(request, mode)
        case OutpaintMode() as mode:
            return _outpainted(request, mode)
        case ExtendMode() as mode:
            return _extended(request, mode)
        case BoxesMode() as mode:
            frames = box_layout(mode.paths, num_frames=request.num_frames, colors=mode.colors, **size)
            return VaceRow(request=request, inputs=control(frames), places={})
        case ReferencesMode() | None:
            inputs = references_only([], num_frames=request.num_frames, **size)
            return VaceRow(request=request, inputs=inputs, places={})


def _controlled(request: ResolvedRequest, mode: ControlMode) -> VaceRow:
    video = _control_video(request)
    frames = _processed(video.frames, mode)
    if "mask_video" in request.media:
        mask = load_mask_video(request.media["mask_video"][0], like=video)
        inputs = VaceInputs(frames=np.where(mask[..., None] > 0, frames, video.frames), mask=mask)
    else:
        inputs = control(frames)
    return VaceRow(request=replace(request, fps=video.fps), inputs=inputs, places=_places(video))


def _processed(frames: np.ndarray, mode: ControlMode) -> np.ndarray:
    """A control of what the frames are."""
    if mode.process is None:
        return frames
    if mode.process == "gray":
        return gray_control(frames)
    levels = np.rint(frames.mean(axis=3, dtype=np.float32)).astype(np.uint8)
    if mode.process == "scribble":
        if np.mean(levels >= _HALF) > 0.5:
            raise RequestError(
                "control_video: process 'scribble' takes light lines on black, and most of these frames is light; "
                "leave process empty if they are black lines on white already"
            )
        return scribble_control(levels)
    return depth_control_from_disparity(255 - levels if mode.process == "depth_near_dark" else levels)


def _inpainted(request: ResolvedRequest, mode: InpaintMode) -> VaceRow:
    video = _control_video(request)
    if mode.box is None:
        mask = load_mask_video(request.media["mask_video"][0], like=video)
    else:
        mask = box_mask(mode.box, width=request.width, height=request.height)
    if mode.shape != "mask":
        mask = hull_mask(mask) if mode.shape == "hull" else bounding_box_mask(mask)
    if mode.expand is not None:
        mask = expand_mask(mask, ratio=mode.expand)
    return VaceRow(request=replace(request, fps=video.fps), inputs=inpaint(video.frames, mask), places=_places(video))


def _outpainted(request: ResolvedRequest, mode: OutpaintMode) -> VaceRow:
    border = {"directions": mode.directions, "ratio": mode.ratio}
    if mode.inner:
        video = _control_video(request)
        inputs = outpaint_inner(video.frames, **border)
    else:
        width, height = outpaint_source_size(request.width, request.height, **border)
        video = _control_video(request, width=width, height=height)
        inputs = outpaint(video.frames, **border)
    rows, columns = (np.flatnonzero((inputs.mask[0] == 0).any(axis)) for axis in (1, 0))
    left, top = int(columns[0]), int(rows[0])
    if not mode.inner:
        video = replace(video, fit=replace(video.fit, left=left, top=top))
    kept: JsonValue = {"left": left, "top": top, "width": len(columns), "height": len(rows)}
    places = {**_places(video), "kept_window": kept}
    return VaceRow(request=replace(request, fps=video.fps), inputs=inputs, places=places)


def _extended(request: ResolvedRequest, mode: ExtendMode) -> VaceRow:
    ends = _ends(request, mode, request.fps or None)
    rates = [video.fps for video in ends.values() if video.source_fps is not None]
    if len(set(rates)) > 1:  # the slower video sets the rate of both
        ends = _ends(request, mode, min(rates))
    frames = {end: video.frames for end, video in ends.items()}
    at = {"first": 0, "last": request.num_frames - len(frames.get("last", ()))}
    kept: JsonValue = {end: {"at_frame": at[end], **_places(video)} for end, video in ends.items()}
    fps = min(rates or [video.fps for video in ends.values()])
    inputs = extend(num_frames=request.num_frames, **frames)
    return VaceRow(request=replace(request, fps=fps), inputs=inputs, places={"kept_clips": kept})


def _ends(request: ResolvedRequest, mode: ExtendMode, fps: float | None) -> dict[End, LoadedVideo]:
    numbers: dict[End, int | None] = {"first": mode.num_first, "last": mode.num_last}
    return {
        end: load_end(
            request.media[end][0],
            end=end,
            num_frames=number,
            max_frames=request.num_frames - 1,
            fps=fps,
            width=request.width,
            height=request.height,
        )
        for end, number in numbers.items()
        if end in request.media
    }


def _as_released(request: ResolvedRequest) -> VaceRow:
    mask = request.media["mask_video"][0] if "mask_video" in request.media else None
    source = load_as_released(request.media["control_video"][0], mask, max_pixels=request.width * request.height)
    num_frames, height, width, _ = source.frames.shape
    return VaceRow(
        request=replace(request, width=width, height=height, num_frames=num_frames),
        inputs=VaceInputs(frames=source.frames, mask=source.mask),
        places=_places(source),
    )


def _control_video(request: ResolvedRequest, *, width: int = 0, height: int = 0) -> LoadedVideo:
    """The clip's frames of it, at the clip's size where no other is given."""
    return load_video(
        request.media["control_video"][0],
        num_frames=request.num_frames,
        fps=request.fps or None,
        width=width or request.width,
        height=height or request.height,
    )


def _references(request: ResolvedRequest) -> list[np.ndarray]:
    pictures = [load_image(source, what="reference_images") for source in request.media.get("reference_images", ())]
    masks = [load_image(source, what="vace.reference_masks") for source in request.media.get("reference_masks", ())]
    if not masks:
        return pictures
    return [
        cut_out(picture, (mask.mean(axis=2) >= _HALF).astype(np.float32))
        for picture, mask in zip(pictures, masks, strict=True)
    ]


def _places(video: LoadedVideo | ReleasedSource) -> dict[str, JsonValue]:
    return {
        "frame_indices": cast(JsonValue, video.frame_indices),
        "source_fps": video.source_fps,
        "fit": cast(JsonValue, asdict(video.fit)),
    }
