"""What importing costs, and what may be imported where."""

import subprocess
import sys

import wan_ray


def test_importing_the_package_loads_neither_torch_nor_ray() -> None:
    heavy = "{'torch', 'ray', 'transformers'}"
    code = f"import sys, wan_ray, wan_ray.config, wan_ray.cli; print(sorted({heavy} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_the_engine_runs_where_ray_is_not_installed() -> None:
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from wan_ray import Renderer, RenderRequest, load_config\n"
        "import wan_ray.report, wan_ray.sample, wan_ray.stages.publish\n"
        "print('fine')"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "fine"


def test_public_names_are_sorted_and_there() -> None:
    assert wan_ray.__all__ == sorted(wan_ray.__all__)
    assert all(getattr(wan_ray, name).__name__ == name for name in wan_ray.__all__)
