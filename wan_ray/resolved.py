"""ResolvedRequest: a request with every default filled in for one model, and the model's own rules about a row.

Below this module a request is trusted.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TypeVar

from pydantic import JsonValue

from wan_ray.errors import RequestError
from wan_ray.request import MEDIA_FIELDS, MEDIA_OF, Compat, RenderRequest
from wan_ray.row_values import content_id
from wan_ray.vace_request import inferred_mode, media_of, options_of
from wan_ray.variants import QUALITIES, TASK_DEFAULTS, Preset, Quality, Shortcuts, Solver, Task, Variant

T = TypeVar("T")
_SHORTCUTS = tuple(field.name for field in fields(Shortcuts))

# What resolve() decides of how a clip is made, whatever the task.
RESOLVED_FIELDS = (
    "width",
    "height",
    "num_frames",
    "fps",
    "num_inference_steps",
    "guidance_scale",
    "flow_shift",
    "solver",
    "negative_prompt",
)


@dataclass(frozen=True, kw_only=True)
class ResolvedRequest:
    """A request with every default filled in for one model.

    width and height are 0 where a first image will decide them, fps where a video may; media holds paths, URLs and
    data URLs by field. vace: the options of its mode, but for the sources among them, which are in media.
    extend_prompt: the prompt is to be rewritten, or was. step_cache: 0 without; guidance_interval: empty for all steps;
    quality: the name of the set that these came from, None for one that leaves nothing out.
    """

    id: str
    variant: str
    task: Task
    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_frames: int
    fps: float
    num_inference_steps: int
    guidance_scale: float
    flow_shift: float
    solver: Solver
    seed: int
    context_scale: float
    labels: Mapping[str, str]
    media: Mapping[str, Sequence[str]] = field(default_factory=dict)
    vace: Mapping[str, JsonValue] = field(default_factory=dict)
    compat: Compat | None = None
    extend_prompt: bool = False
    quality: Quality | None = None
    step_cache: float = 0.0
    guidance_interval: Sequence[float] = ()

    @property
    def guided_steps(self) -> range:
        """As guided_steps() has it."""
        return guided_steps(self.num_inference_steps, self.guidance_scale, self.guidance_interval)


def guided_steps(num_inference_steps: int, guidance_scale: float, guidance_interval: Sequence[float]) -> range:
    """The steps, from 0, in which the model also runs on the negative prompt; interval: their part, empty for all."""
    if guidance_scale == 1:
        return range(0)
    start, stop = guidance_interval or (0.0, 1.0)
    return range(round(start * num_inference_steps), round(stop * num_inference_steps))


_NOT_TOLD = frozenset({"id", "labels", "quality"})  # a quality's shortcuts are told one by one


def content_of(request: ResolvedRequest) -> str:
    """16 hex digits that change with all that a clip follows from but its id, the weights and what lies at its media.

    What is empty does not count, so that a field that is added later changes no row that leaves it empty.
    """
    told = {name: value for name, value in vars(request).items() if value and name not in _NOT_TOLD}
    # repr() is the fastest: a plan of a million rows makes as many.
    return hashlib.sha256(f"{told!r}{sorted(request.labels.items())!r}".encode()).hexdigest()[:16]


def seed_from_id(request_id: str) -> int:
    """A seed below 2**53 (exact in JSON) that depends on the id alone."""
    return int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:8], "big") >> 11


def choose_variant(request: RenderRequest, variants: Sequence[Variant]) -> Variant:
    """The first that renders the task and was trained at the size; else the first that renders it at all.

    RequestError when none renders the task.
    """
    able = [variant for variant in variants if request.task in variant.tasks]
    if not able:
        known = "; ".join(f"{variant.name} renders {', '.join(variant.tasks)}" for variant in variants)
        raise RequestError(f"task: no model of this run renders {request.task!r}: {known}; add one or drop the row")
    return next((v for v in able if (request.width, request.height) in v.sizes), able[0])


def resolve(
    request: RenderRequest, variant: Variant, preset: Preset | None = None, *, extends: bool = False
) -> ResolvedRequest:
    """Fill in what preset, task and model decide; RequestError when this model cannot render it.

    extends: whether there is an extender for rows that ask for one.
    """
    if request.task not in variant.tasks:
        choose_variant(request, [variant])
    if request.extend_prompt and not extends:
        raise RequestError(
            "extend_prompt: true, but no prompt extender is configured; add `extend` to the config, or extend the "
            "prompts beforehand with `wan-ray extend`"
        )
    default = TASK_DEFAULTS[request.task]
    sampler = preset or default
    flow_shift = sampler.flow_shift if preset or variant.flow_shift is None else variant.flow_shift
    width, height = _size(request, variant)
    num_frames = _or(request.num_frames, default.num_frames)
    media, vace = _media(request), {}
    if request.task == "vace":
        mode = request.vace or inferred_mode(media)
        mode.check_fits(width=width, height=height, num_frames=num_frames)
        vace = options_of(mode)
    # A source slower than the usual rate is followed; the released code writes that rate for any.
    follows = request.compat is None and any(name in media for name in ("control_video", "first", "last"))
    shortcuts = _shortcuts(request)
    whole = (shortcuts.guidance_start, shortcuts.guidance_stop) == (0.0, 1.0)
    request_id = request.id or content_id(request.model_dump(exclude_defaults=True))
    return ResolvedRequest(
        id=request_id,
        variant=variant.name,
        task=request.task,
        prompt=request.prompt,
        negative_prompt=_or(request.negative_prompt, default.negative_prompt),
        width=width,
        height=height,
        num_frames=num_frames,
        fps=_or(request.fps, 0.0 if follows else default.fps),
        num_inference_steps=_or(request.num_inference_steps, sampler.num_inference_steps),
        guidance_scale=_or(request.guidance_scale, sampler.guidance_scale),
        flow_shift=_or(request.flow_shift, flow_shift),
        solver=request.solver or sampler.solver,
        seed=_or(request.seed, seed_from_id(request_id)),
        context_scale=_or(request.context_scale, 1.0),
        labels=request.labels,
        media=media,
        vace=vace,
        compat=request.compat,
        extend_prompt=request.extend_prompt,
        quality=None if request.quality == "lossless" else request.quality,
        step_cache=shortcuts.step_cache,
        guidance_interval=[] if whole else [shortcuts.guidance_start, shortcuts.guidance_stop],
    )


def _size(request: RenderRequest, variant: Variant) -> tuple[int, int]:
    """Width and height, 0 where an image will decide them."""
    shaped_by_image = "image" in MEDIA_OF[request.task][0]
    width, height = (0, 0) if shaped_by_image else variant.sizes[0]
    width, height = request.width or width, request.height or height
    if width * height > variant.max_pixels:
        raise RequestError(
            f"width={width}, height={height}: {width * height} pixels are more than {variant.name}'s "
            f"{variant.max_pixels}; make it smaller, e.g. {_sizes(variant)}"
        )
    return width, height


def _shortcuts(request: RenderRequest) -> Shortcuts:
    """Those of its quality, but for what the request says itself."""
    own = {name: value for name in _SHORTCUTS if (value := getattr(request, name)) is not None}
    found = replace(QUALITIES[request.quality or "lossless"], **own)
    if found.guidance_start >= found.guidance_stop:
        raise RequestError(
            f"guidance_start={found.guidance_start:g}, guidance_stop={found.guidance_stop:g}: guidance would start "
            "after it stops; give start < stop, or guidance_scale 1 for a clip without guidance"
        )
    return found


def _media(request: RenderRequest) -> dict[str, list[str]]:
    sources = {name: value for name in MEDIA_FIELDS if (value := getattr(request, name))}
    if request.vace is not None:
        sources |= media_of(request.vace)
    return {name: _sources(value) for name, value in sources.items()}


def _sources(value: str | bytes | list[str | bytes]) -> list[str]:
    """Media as text: bytes become data URLs."""
    return [
        one if isinstance(one, str) else "data:application/octet-stream;base64," + base64.b64encode(one).decode()
        for one in (value if isinstance(value, list) else [value])
    ]


def warnings_for(request: ResolvedRequest, variant: Variant) -> list[str]:
    """What is allowed but outside of what the model was trained for, or more than can be told ahead."""
    found = []
    if request.width and (request.width, request.height) not in variant.sizes and variant.architecture is not None:
        found.append(f"size {request.width}x{request.height} is outside {variant.name}'s trained {_sizes(variant)}")
    if request.num_frames > 81:
        found.append(f"num_frames {request.num_frames} is more than the 81 that Wan2.1 was trained on")
    if "mask_video" in request.media and "control_video" not in request.media:
        found.append("a mask_video without a control_video is dropped, as in the released code")
    if request.step_cache:
        found.append("step_cache: counted as if nothing were skipped, and without the memory of what it keeps")
    return found


def _sizes(variant: Variant) -> str:
    return ", ".join(f"{w}x{h}" for w, h in variant.sizes)


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
