"""Which extender a config means, and what it needs of the environment."""

import os
from dataclasses import dataclass

from wan_ray.errors import ConfigError
from wan_ray.extend_section import ExtendSection
from wan_ray.prompt import dashscope, openai_compatible
from wan_ray.prompt.api import ApiExtender, Service
from wan_ray.prompt.dashscope import DashScope
from wan_ray.prompt.extender import Extender
from wan_ray.prompt.openai_compatible import OpenAICompatible
from wan_ray.prompt.pace import Breaker, Pace


def make_extender(section: ExtendSection) -> Extender:
    """The extender, which loads and connects to nothing yet; ConfigError when a key is missing."""
    if section.provider == "qwen":
        # Imported here: it brings torch.
        from wan_ray.prompt.qwen import QwenExtender

        return QwenExtender(section)
    return ApiExtender(
        DashScope() if section.provider == "dashscope" else OpenAICompatible(),
        service_of(section),
        seed=section.seed,
        pace=Pace(requests_per_window=section.requests_per_minute, tokens_per_window=section.tokens_per_minute),
        breaker=Breaker(),
        rows_at_once=section.rows_at_once,
        timeout_s=section.timeout_s,
        max_tries=section.max_tries,
    )


def check_extender(section: ExtendSection) -> None:
    """Raise ConfigError when a key is missing here, before anything is started; nobody is asked."""
    if section.provider != "qwen":
        service_of(section)


def service_of(section: ExtendSection) -> Service:
    """Where the section's service is and with which key; ConfigError names the variable that is missing."""
    found = _environment(section.provider)
    if found.key is not None and not (found.key.isascii() and found.key.isprintable() and " " not in found.key):
        raise ConfigError(
            f"the key for extend.provider={section.provider!r} has blanks or letters that no key has (it is not shown "
            "here); set the variable anew"
        )
    if section.provider == "dashscope":
        if found.key is None:
            raise ConfigError("extend.provider='dashscope' needs a key: set DASH_API_KEY in the environment")
        model, image_model = section.model or dashscope.MODEL, section.image_model or dashscope.IMAGE_MODEL
        base_url = section.base_url or found.base_url or dashscope.BASE_URL
    else:
        base_url = section.base_url or found.base_url or openai_compatible.BASE_URL
        if found.key is None and base_url == openai_compatible.BASE_URL:
            raise ConfigError(
                f"extend.provider='openai' at {base_url!r} needs a key: set OPENAI_API_KEY in the environment, or "
                "extend.base_url to a server that asks for none"
            )
        model = section.model or ""
        image_model = section.image_model or model
    return Service(base_url=base_url, key=found.key, model=model, image_model=image_model)


@dataclass(frozen=True, kw_only=True)
class _Environment:
    key: str | None
    base_url: str | None


def _environment(provider: str) -> _Environment:
    """The one place where this package reads the environment below the command line.

    A key must be in no config, for configs are written into the output; and it must be read by the process that uses
    it, for what a driver sends its workers is kept by Ray, and shown on its dashboard.
    """
    names = {"dashscope": ("DASH_API_KEY", "DASH_API_URL"), "openai": ("OPENAI_API_KEY", "OPENAI_BASE_URL")}
    key, base_url = (os.environ.get(name, "").strip() or None for name in names[provider])
    return _Environment(key=key, base_url=base_url)
