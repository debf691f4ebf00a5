"""Service: what every route works with; and whose a request is."""

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from wan_ray.config import RenderConfig
from wan_ray.serving.backend import Backend
from wan_ray.serving.content import Previews
from wan_ray.serving.jobs import JobStore
from wan_ray.serving.keys import Keys, check_same_site
from wan_ray.serving.limits import RateLimiter
from wan_ray.serving.traffic import Traffic
from wan_ray.serving.webhooks import Webhooks


@dataclass(frozen=True, kw_only=True)
class Service:
    """One process's."""

    config: RenderConfig
    jobs: JobStore
    backend: Backend
    keys: Keys
    limiter: RateLimiter
    previews: Previews
    webhooks: Webhooks
    traffic: Traffic = field(default_factory=Traffic)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Serving = Annotated[Service, Depends(_service)]


def authorization_of(request: Request) -> str | None:
    """The request's Authorization headers, joined as HTTP joins those that come several times."""
    return ", ".join(request.headers.getlist("authorization")) or None


def _owner(request: Request, service: Serving) -> str:
    owner = service.keys.owner_of(authorization_of(request))
    if not service.keys.entries:
        check_same_site(request.headers)
    service.limiter.check(owner)
    return owner


Owner = Annotated[str, Depends(_owner)]
