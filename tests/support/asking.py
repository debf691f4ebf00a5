"""Fixtures: rows that ask for a rewrite, a server to ask in this process, and a stage that asks it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from llm_server import KEY, LlmServer, llm_server

from wan_ray.extend_section import ExtendSection
from wan_ray.prompt.api import ApiExtender
from wan_ray.prompt.dashscope import DashScope
from wan_ray.prompt.openai_compatible import OpenAICompatible
from wan_ray.prompt.pace import Breaker, Pace
from wan_ray.prompt.providers import service_of
from wan_ray.request import RenderRequest
from wan_ray.resolved import resolve
from wan_ray.stages.extend import ExtendStage
from wan_ray.stages.items import Item
from wan_ray.variants import get_variant


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LlmServer]:
    for name in ("DASH_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, KEY)
    for name in ("DASH_API_URL", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with llm_server() as state:
        yield state


@pytest.fixture(scope="session")
def item_of() -> Callable[..., Item]:
    """item_of(prompt, variant="debug", **fields): an item that asks for a rewrite."""

    def make(prompt: str, *, variant: str = "debug", **fields: Any) -> Item:
        request = resolve(
            RenderRequest(**{"id": prompt[:40], "prompt": prompt, "extend_prompt": True, **fields}),
            get_variant(variant),
            extends=True,
        )
        return Item(name=request.id, id=request.id, row=None, request=request, prompt=prompt)

    return make


@pytest.fixture
def section_of(server: LlmServer) -> Callable[..., ExtendSection]:
    """section_of("dashscope", **settings): a section for the server."""

    def make(provider: str, **settings: Any) -> ExtendSection:
        url = server.dashscope_url if provider == "dashscope" else server.openai_url
        settings = {"model": "qwen-plus", "timeout_s": 30.0, **settings}
        return ExtendSection(provider=provider, base_url=url, **settings)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def stage_of() -> Callable[..., ExtendStage]:
    """stage_of(section, pace=, breaker=, output=): a stage that waits milliseconds between tries, not seconds."""

    def make(section: ExtendSection, *, pace: Pace | None = None, breaker: Breaker | None = None, **where: Any) -> Any:
        def quick(section: ExtendSection) -> ApiExtender:
            return ApiExtender(
                DashScope() if section.provider == "dashscope" else OpenAICompatible(),
                service_of(section),
                seed=section.seed,
                pace=pace or Pace(),
                breaker=breaker or Breaker(max_failures=10_000),
                rows_at_once=section.rows_at_once,
                timeout_s=section.timeout_s,
                max_tries=section.max_tries,
                first_wait_s=0.01,
            )

        return ExtendStage(section, make=quick, **where)

    return make
