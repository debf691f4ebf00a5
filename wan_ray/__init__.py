"""Wan2.1 on Ray: manifests of prompts in, datasets of videos out. Importing this loads neither torch nor Ray."""

from importlib import import_module
from typing import TYPE_CHECKING

from wan_ray.version import VERSION

if TYPE_CHECKING:
    from wan_ray.config import RenderConfig, load_config
    from wan_ray.graph.offline import build_processor
    from wan_ray.renderer import Rendered, Renderer
    from wan_ray.request import RenderRequest

__all__ = ["RenderConfig", "RenderRequest", "Rendered", "Renderer", "build_processor", "load_config"]

__version__ = VERSION

_HOMES = {
    "RenderConfig": "wan_ray.config",
    "RenderRequest": "wan_ray.request",
    "Rendered": "wan_ray.renderer",
    "Renderer": "wan_ray.renderer",
    "build_processor": "wan_ray.graph.offline",
    "load_config": "wan_ray.config",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'wan_ray' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
