"""What a quality leaves out of a clip's work; that the step cache's criterion is diffusers' is for tests/parity."""

import sys
from pathlib import Path

import pytest
import torch

from wan_ray.errors import ProgressError, RequestError
from wan_ray.model.step_cache import StepCache
from wan_ray.request import RenderRequest, parse_row
from wan_ray.resolved import content_of, resolve
from wan_ray.sampling.loop import guide
from wan_ray.stages.denoise import DenoiseStage, Place, draw_noise
from wan_ray.stages.pause import Pause
from wan_ray.stages.publish import make_record
from wan_ray.variants import get_variant

sys.path.append(str(Path(__file__).parent.parent / "parallel"))
from clips import CPU, KINDS, difference, make_item, write_dit

THRESHOLD = 0.7  # of the random weights' changes, which are between 0.5 and 0.9 a step


def resolved(**fields):
    return resolve(RenderRequest.model_validate({"id": "a", "prompt": "a road", **fields}), get_variant("debug"))


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """stage(task): a DenoiseStage of random weights."""
    stages = {}

    def get(task):
        kind = KINDS[task]
        if kind not in stages:
            model, _ = write_dit(tmp_path_factory.mktemp(kind), kind).load_dit(dtype=torch.float32, device=CPU)
            stages[kind] = DenoiseStage(model, "weights", Place(device=CPU))
        return stages[kind]

    return get


class Counted:
    """How often the second block runs: once a pass that is computed."""

    def __init__(self, stage):
        self.calls = 0
        self._handle = stage.model.blocks[1].register_forward_hook(self._count)

    def _count(self, *_):
        self.calls += 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._handle.remove()


@pytest.mark.parametrize("task", ["t2v", "i2v", "flf2v", "vace"])
def test_a_step_like_the_one_before_is_taken_over_with_all_that_the_blocks_added(stage, task):
    item, denoise = make_item(task), stage(task)
    names = ("image_features", "condition", "vace_context")
    conditions = {name: item.tensors[name] for name in names if name in item.tensors}
    latents = draw_noise(item.sound)[None]
    with torch.inference_mode(), Counted(denoise) as counted:
        context = denoise.model.encode_context(item.tensors["context"], **conditions)
        cache = StepCache(1e-6).passes()
        first, again = (denoise.model(latents, 900, context, cache) for _ in range(2))
        assert counted.calls == 1
        assert torch.equal(first, denoise.model(latents, 900, context))
    assert difference(again, first) < 1e-6


@pytest.mark.parametrize("task", ["t2v", "vace"])
def test_passes_are_left_out_and_the_record_says_how_many(stage, task):
    denoise = stage(task)
    with Counted(denoise) as counted:
        found = denoise(make_item(task, num_inference_steps=8, step_cache=THRESHOLD))
    computed = int(found.rendered_on["steps_computed"].removesuffix(" of 8"))
    assert 1 < computed < 8
    assert counted.calls == 2 * computed  # both passes take the same decision
    exact = denoise(make_item(task, num_inference_steps=8))
    assert "steps_computed" not in exact.rendered_on
    assert 0 < difference(found.tensors["latents"], exact.tensors["latents"]) < 1


def test_a_cache_that_never_takes_over_changes_no_bit(stage):
    for task in ("t2v", "vace"):
        found, wanted = (stage(task)(make_item(task, step_cache=threshold)) for threshold in (1e-9, 0.0))
        assert torch.equal(found.tensors["latents"], wanted.tensors["latents"])


def test_a_cache_that_takes_over_all_it_can_computes_one_step(stage):
    with Counted(stage("t2v")) as counted:
        found = stage("t2v")(make_item("t2v", num_inference_steps=6, step_cache=1e9))
    assert (counted.calls, found.rendered_on["steps_computed"]) == (2, "1 of 6")
    assert torch.isfinite(found.tensors["latents"]).all()


@pytest.mark.parametrize(
    ("interval", "guided_steps"), [((0.0, 0.5), (0, 1, 2)), ((0.5, 1.0), (3, 4, 5)), ((0.2, 0.75), (1, 2, 3))]
)
def test_guidance_runs_in_its_part_of_the_steps_alone(stage, interval, guided_steps):
    item, denoise = make_item("t2v", num_inference_steps=6, solver="euler", guidance_interval=interval), stage("t2v")
    with Counted(denoise) as counted:
        found = denoise(item).tensors["latents"]
    assert counted.calls == 6 + len(guided_steps)
    with torch.inference_mode():
        texts = (denoise.model.encode_context(item.tensors[name]) for name in ("context", "negative_context"))
        conditional, unconditional = texts
        # Euler from the release's noise levels, shifted: written out here.
        levels = torch.linspace(1.0, 1 / 6, 6, dtype=torch.float64)
        sigmas = [*(5 * levels / (1 + 4 * levels)).tolist(), 0.0]
        latents = draw_noise(item.sound)[None]
        for step in range(6):
            velocity = denoise.model(latents, round(sigmas[step] * 1000), conditional)
            if step in guided_steps:
                other = denoise.model(latents, round(sigmas[step] * 1000), unconditional)
                velocity = guide(velocity, other, 5.0)
            latents = latents + (sigmas[step + 1] - sigmas[step]) * velocity
    assert difference(found, latents[0]) < 0.02  # the levels' rounding; without its part's guidance it is 0.2 or more


def test_a_clip_that_is_gone_on_from_computes_its_next_step(stage):
    denoise, saved = stage("t2v"), []
    item = make_item("t2v", num_inference_steps=8, step_cache=1e9)
    with pytest.raises(KeyboardInterrupt):
        denoise(item, _interrupted_after(4), pause=Pause(save=saved.append, save_every_s=0))
    with Counted(denoise) as counted:
        found = denoise(item, resume=saved[-1])
    assert counted.calls == 2
    assert torch.isfinite(found.tensors["latents"]).all()
    with pytest.raises(ProgressError, match="another clip's"):
        denoise(make_item("t2v", num_inference_steps=8), resume=saved[-1])


def _interrupted_after(last):
    def on_step(done, total):
        if done == last:
            raise KeyboardInterrupt

    return on_step


def test_a_quality_names_its_shortcuts_and_a_row_has_the_last_word():
    draft = resolved(quality="draft")
    assert (draft.quality, draft.step_cache, draft.guidance_interval) == ("draft", 0.12, [0.0, 0.6])
    mine = resolved(quality="draft", step_cache=0, guidance_start=0.1, guidance_stop=1.0)
    assert (mine.quality, mine.step_cache, mine.guidance_interval) == ("draft", 0.0, [0.1, 1.0])
    alone = resolved(step_cache=0.3)
    assert (alone.quality, alone.step_cache, alone.guidance_interval) == (None, 0.3, [])


def test_a_lossless_row_is_the_row_that_it_was():
    plain = resolved()
    assert content_of(plain) == "43c951cef274ef80"  # of the version before there were shortcuts
    for same in ({"quality": "lossless"}, {"step_cache": 0}, {"guidance_start": 0, "guidance_stop": 1}):
        assert content_of(resolved(**same)) == content_of(plain)
    others = ({"quality": "draft"}, {"quality": "high"}, {"step_cache": 0.3}, {"guidance_stop": 0.5})
    assert len({content_of(resolved(**other)) for other in (*others, {})}) == 5
    # The same shortcuts are the same work, by whatever name.
    assert content_of(resolved(quality="draft")) == content_of(resolved(step_cache=0.12, guidance_stop=0.6))


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"quality": "fast"}, "quality: 'fast' is not known; use 'lossless', 'high' or 'draft'"),
        ({"step_cache": -0.1}, "step_cache: -0.1"),
        ({"step_cache": 1.5}, "step_cache: 1.5"),
        ({"guidance_stop": 1.1}, "guidance_stop: 1.1"),
        ({"guidance_start": 0.6, "quality": "draft"}, "guidance_start=0.6, guidance_stop=0.6: guidance would start"),
    ],
)
def test_what_is_out_of_range_is_told(row, told):
    with pytest.raises(RequestError) as caught:
        resolve(parse_row({"prompt": "a", **row}).request, get_variant("debug"))
    assert told in str(caught.value)


def test_a_record_says_what_was_left_out(stage):
    item = make_item("t2v", num_inference_steps=4, quality="draft", step_cache=THRESHOLD, guidance_interval=[0.0, 0.5])
    record = make_record(stage("t2v")(item), run_id="r")
    assert (record.quality, record.step_cache, record.guidance_interval) == ("draft", THRESHOLD, [0.0, 0.5])
    assert record.rendered_on["steps_computed"].endswith(" of 4")
    plain = make_record(stage("t2v")(make_item("t2v")), run_id="r")
    assert (plain.quality, plain.step_cache, plain.guidance_interval) == (None, 0.0, [])
