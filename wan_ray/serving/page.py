"""The page at /: its files, which lie in page/, and what this server offers, for it to build its form from."""

import hashlib
from importlib import resources
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from wan_ray.config import RenderConfig
from wan_ray.request import MAX_PROMPT_CHARS, MAX_SEED
from wan_ray.resolved import RESOLVED_FIELDS, ResolvedRequest
from wan_ray.serving.service import Owner, Serving
from wan_ray.stages.read import read_row
from wan_ray.variants import Task, get_variant

# Nothing is loaded from elsewhere, nothing inline runs, and no text becomes markup.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:; "
    "media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_FILES = ("index.html", "app.js", "server.js", "form.js", "curl.js", "videos.js", "texts.js", "style.css", "icon.svg")
# Not of the mimetypes module, which follows the machine's tables.
_KINDS = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
_NEEDED_MEDIA: dict[Task, dict[str, object]] = {
    "t2v": {},
    "t2i": {},
    "i2v": {"image": "any"},
    "flf2v": {"image": "any", "last_image": "any"},
    "vace": {"reference_images": ["any"]},
}
_SHOWN_DEFAULTS = (*RESOLVED_FIELDS, "context_scale")


def page_routes(config: RenderConfig) -> APIRouter:
    """GET /, and what the page needs under /page/: queue.json with a key, from make_app's service; the rest without."""
    routes = APIRouter(include_in_schema=False)
    offered = options(config)
    files = {name: (resources.files("wan_ray.serving") / "page" / name).read_bytes() for name in _FILES}

    @routes.get("/")
    def index(request: Request) -> Response:
        return _file("index.html", files["index.html"], request)

    @routes.get("/page/options.json")
    def options_json() -> Response:
        return JSONResponse(offered, headers=_HEADERS)

    @routes.get("/page/queue.json")
    async def queue_json(owner: Owner, service: Serving) -> Response:
        queue = await service.backend.view()
        return JSONResponse({"queued": queue.queued, "running": queue.running}, headers=_HEADERS)

    @routes.get("/page/{name}")
    def asset(name: str, request: Request) -> Response:
        if name not in files:
            return Response(status_code=404)
        return _file(name, files[name], request)

    return routes


def options(config: RenderConfig) -> dict[str, Any]:
    """Each task that a model of the config renders, with what a row gets that says nothing; and what bounds a row."""
    serve = config.serve
    offers = [
        _offer(task, request)
        for section in config.all_models
        for task in get_variant(section.variant).tasks
        if (request := _unsaid(task, config.model_copy(update={"model": section, "models": ()}))) is not None
    ]
    limits = {
        "prompt_chars": MAX_PROMPT_CHARS,
        "seed": min(MAX_SEED, 2**53 - 1),  # beyond, JavaScript would round it
        "num_frames": serve.max_frames,
        "num_inference_steps": serve.max_inference_steps,
        "body_bytes": serve.max_body_bytes,
    }
    return {"offers": offers, "limits": limits}


def _unsaid(task: Task, config: RenderConfig) -> ResolvedRequest | None:
    """What becomes of a row that gives only what it must; None where the config's defaults do not suit the model."""
    return read_row({"task": task, "prompt": "any", **_NEEDED_MEDIA[task]}, config).request


def _offer(task: Task, request: ResolvedRequest) -> dict[str, Any]:
    variant = get_variant(request.variant)
    return {
        "task": task,
        "model": variant.name,
        "sizes": [f"{width}x{height}" for width, height in variant.sizes],
        "max_pixels": variant.max_pixels,
        "defaults": {name: getattr(request, name) for name in _SHOWN_DEFAULTS},
    }


def _file(name: str, data: bytes, request: Request) -> Response:
    etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
    headers = {**_HEADERS, "etag": etag}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=_KINDS[name.rpartition(".")[2]], headers=headers)
