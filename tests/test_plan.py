"""What `wan-ray plan` prints, from manifests on disk."""

import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from wan_ray.cli import INVALID, OK, main
from wan_ray.config import HardwareSection, ModelSection
from wan_ray.costs.layout import Layout, estimate
from wan_ray.renderer import Renderer
from wan_ray.request import RenderRequest
from wan_ray.resolved import resolve
from wan_ray.stages.read import bucket_of
from wan_ray.variants import get_variant

NUM_ROWS = 10_000
STAGES = {
    "encode": {"num_gpus": 0.4},
    "denoise": {"num_gpus": 1, "replicas": {"min": 1, "max": 64}},
    "decode": {"num_gpus": 0.3, "replicas": 2},
}
HARDWARE = {"gpu": "H100-80GB", "num_gpus": 64, "price_per_gpu_hour": 2.5}


@pytest.fixture
def planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """planned(rows, config...): exit code, output and errors of `wan-ray plan`."""

    def plan(rows: dict[str, list], **config: object) -> tuple[int, str, str]:
        pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump({"manifest": "rows.parquet", "stages": STAGES, **config}))
        code = main(["plan", str(file)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return plan


def mixed_rows() -> dict[str, list]:
    """Five tasks, sizes and lengths in turn; every seventh row without guidance."""
    numbers = range(NUM_ROWS)
    tasks = [("t2v", "t2i", "i2v", "flf2v", "vace")[i % 5] for i in numbers]
    sized = [task in ("t2v", "vace") for task in tasks]
    return {
        "id": [f"row-{i}" for i in numbers],
        "prompt": [f"A car number {i} drives along a road" for i in numbers],
        "task": tasks,
        "width": [(832, 1280)[i // 5 % 2] if sized[i] else None for i in numbers],
        "height": [(480, 720)[i // 5 % 2] if sized[i] else None for i in numbers],
        "num_frames": [(33, 81)[i // 10 % 2] if sized[i] else None for i in numbers],
        "guidance_scale": [1.0 if i % 7 == 0 else None for i in numbers],
        "image": ["first.png" if task in ("i2v", "flf2v") else None for task in tasks],
        "last_image": ["last.png" if task == "flf2v" else None for task in tasks],
    }


def test_a_mixed_manifest_is_planned_in_time_with_layout_and_reason_for_every_shape(
    planned: Callable[..., tuple[int, str, str]],
) -> None:
    names = ("t2v-1.3B", "t2v-14B", "i2v-14B-720P", "flf2v-14B", "vace-14B")
    models = [{"variant": name, "checkpoint": "none", "gang": "auto"} for name in names]
    started = time.process_time()
    code, out, _ = planned(mixed_rows(), models=models, hardware=HARDWARE)
    assert time.process_time() - started < 20
    assert code == OK
    lines = out.splitlines()
    shapes = [number for number, line in enumerate(lines) if line[:8].strip().isdigit()]
    assert sum(int(lines[number][:8]) for number in shapes) == NUM_ROWS
    assert (
        len(shapes) == 22
    )  # t2v and vace: two sizes, two lengths, with and without guidance; the others with and without
    assert all("one GPU a clip: one GPU has the memory" in lines[number + 1] for number in shapes)
    assert "reckoned at the model's own 1280x720" in out
    assert "on 64 H100-80GB" in out
    for name in names:
        assert f"{name}: 63 gangs at work want" in out


def test_a_run_of_few_clips_shows_a_gang_and_why(planned: Callable[..., tuple[int, str, str]]) -> None:
    model = {"variant": "t2v-14B", "checkpoint": "none", "gang": "auto"}
    code, out, _ = planned({"prompt": ["A tunnel"]}, model=model, hardware={**HARDWARE, "num_gpus": 9})
    assert code == OK
    assert "gang: {cfg_degree: 2, ulysses_degree: 4}: one clip ends after 4 min on 1 x 8 GPUs, after 30 min" in out


def test_without_hardware_the_shapes_are_shown_and_how_to_get_the_rest(
    planned: Callable[..., tuple[int, str, str]],
) -> None:
    code, out, _ = planned({"prompt": ["A tunnel"]}, model={"variant": "t2v-14B", "checkpoint": "none"})
    assert code == OK
    assert out.splitlines()[3].split() == ["1", "t2v-14B", "t2v", "1280x720", "81", "50", "100"]
    assert "hardware: {gpu: H100-80GB, num_gpus: 8}" in out
    _, out, _ = planned({"prompt": ["A tunnel"]}, model={"variant": "debug", "checkpoint": "none"})
    assert "hardware" not in out


def test_a_layout_that_cannot_work_is_an_error_that_names_one(planned: Callable[..., tuple[int, str, str]]) -> None:
    model = {"variant": "t2v-14B", "checkpoint": "none", "gang": {"cfg_degree": 2, "ulysses_degree": 8}}
    code, out, err = planned({"prompt": ["A tunnel"]}, model=model, hardware={**HARDWARE, "num_gpus": 9})
    assert (code, out) == (INVALID, "")
    assert "wants 1 x 16 GPUs" in err
    assert "use gang: {cfg_degree: 2, ulysses_degree: 4}" in err


@pytest.fixture(scope="module")
def computed(debug_checkpoint: Path) -> Callable[..., int]:
    """computed(columns...): how often a render of 10 steps calls the denoiser."""
    renderer, calls = Renderer.from_checkpoint(debug_checkpoint, dtype="float32", device="cpu"), []
    renderer.denoise.model.register_forward_hook(lambda *_: calls.append(1))

    def render(**columns: float) -> int:
        calls.clear()
        row = {"prompt": "A tunnel", "width": 64, "height": 48, "num_frames": 5, "num_inference_steps": 10}
        renderer(RenderRequest.model_validate({**row, **columns}))
        return len(calls)

    return render


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"guidance_scale": 1.0},
        {"guidance_stop": 0.6},
        {"guidance_start": 0.25, "guidance_stop": 0.75},
        {"guidance_start": 0.96},  # no step is that late
        {"guidance_scale": 1.0, "guidance_stop": 0.6},
    ],
)
def test_a_row_s_passes_and_time_are_those_that_its_render_computes(
    planned: Callable[..., tuple[int, str, str]], computed: Callable[..., int], columns: dict[str, float]
) -> None:
    passes, full = computed(**columns), computed()
    assert full == 20
    row = {"prompt": "A tunnel", "num_inference_steps": 10, **columns}
    model = {"variant": "t2v-14B", "checkpoint": "none"}
    _, out, _ = planned({name: [value] for name, value in row.items()}, model=model)
    assert out.splitlines()[3].split()[-2:] == ["10", f"{passes}"]
    shapes = (
        bucket_of(resolve(RenderRequest.model_validate(one), get_variant("t2v-14B")))
        for one in (row, {"prompt": "A tunnel", "num_inference_steps": 10})
    )
    mine, whole = (
        estimate(ModelSection.model_validate(model), shape, Layout(), HardwareSection.model_validate(HARDWARE))
        for shape in shapes
    )
    assert mine.seconds / whole.seconds == pytest.approx(passes / full, rel=1e-3)


def test_rows_with_a_step_cache_are_counted_in_full_and_the_plan_says_so(
    planned: Callable[..., tuple[int, str, str]],
) -> None:
    model = {"variant": "t2v-14B", "checkpoint": "none"}
    rows = {"prompt": ["A tunnel", "A bridge", "A ferry"], "step_cache": [0.1, None, 0.05]}
    _, out, _ = planned(rows, model=model, hardware=HARDWARE)
    assert out.splitlines()[3].split()[:7] == ["3", "t2v-14B", "t2v", "1280x720", "81", "50", "100"]
    assert out.count("step_cache") == 1
    assert "2 rows: step_cache: counted as if nothing were skipped" in out
    assert "step_cache" not in planned({"prompt": ["A tunnel"]}, model=model)[1]
