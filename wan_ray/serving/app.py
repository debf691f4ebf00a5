"""make_app: the HTTP application, of routes that stand beside this module."""

from fastapi import Depends, FastAPI

from wan_ray.config import RenderConfig
from wan_ray.serving import derived_routes, events, image_routes, server_routes, video_routes
from wan_ray.serving.answers import Answers, add_error_answers_
from wan_ray.serving.backend import Backend
from wan_ray.serving.content import Previews
from wan_ray.serving.jobs import JobStore
from wan_ray.serving.keys import Keys
from wan_ray.serving.limits import RateLimiter, check_head
from wan_ray.serving.openapi import add_docs_
from wan_ray.serving.page import page_routes
from wan_ray.serving.service import Service
from wan_ray.serving.webhooks import Webhooks
from wan_ray.version import VERSION

_ABOUT = """Wan2.1 behind the OpenAI video API: its clients work as they are, and our fields stand beside theirs.

A video is a job: create it, ask for it until its status is "completed" (or listen to its events), then get its content.
Errors have OpenAI's form, every answer has an `x-request-id`."""


def make_app(config: RenderConfig, *, jobs: JobStore, backend: Backend, keys: Keys) -> FastAPI:
    """Answers for any job in the store; what is live, the backend tells."""
    app = FastAPI(
        title="wan_ray", version=VERSION, description=_ABOUT, redoc_url=None, dependencies=[Depends(check_head)]
    )
    limits = config.serve
    service = Service(
        config=config,
        jobs=jobs,
        backend=backend,
        keys=keys,
        limiter=RateLimiter(limits.requests_per_minute),
        previews=Previews(jobs),
        webhooks=Webhooks(keys, allowed_hosts=limits.allowed_media_hosts),
    )
    app.state.service = service
    for routes in (video_routes, derived_routes, events, image_routes, server_routes):
        app.include_router(routes.router)
    app.include_router(page_routes(config))
    add_error_answers_(app)
    add_docs_(app, with_keys=bool(keys.entries))
    app.add_middleware(Answers, service=service)
    return app
