import pickle
from pathlib import Path

import pytest

from wan_ray.config import ModelSection, RenderConfig, load_config
from wan_ray.errors import ConfigError
from wan_ray.variants import VARIANTS

MINIMAL = "model: {variant: debug, checkpoint: checkpoint}\n"


@pytest.fixture
def written(tmp_path):
    """Writes a config of this text into tmp_path/run and returns its path."""

    def write(text):
        file = tmp_path / "run" / "config.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    return write


def refusal(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value).removeprefix(f"config {str(path)!r}").removeprefix(": ")


def test_a_minimal_config_has_the_release_s_video_quality_and_one_worker_per_stage(written):
    config = load_config(written(MINIMAL))
    assert (config.video.crf, config.video.preset) == (10, "medium")
    replicas = [getattr(config.stages, s).replicas for s in ("encode", "denoise", "decode", "publish")]
    assert [(r.min, r.max) for r in replicas] == [(1, 1)] * 4
    assert (config.model.dtype, config.model.device, config.manifest, config.output) == ("auto", "auto", None, None)
    assert [model.variant for model in config.all_models] == ["debug"]


def test_overrides_reach_into_sections_and_are_typed_as_yaml(written):
    config = load_config(
        written(MINIMAL + "video: {crf: 20}\nstages:\n  denoise: {replicas: 2}\n"),
        [
            "video.crf=18",
            "stages.denoise.num_gpus=0.5",
            "stages.encode.num_cpus=2",
            "model.dtype=bfloat16",
            "defaults.num_frames=33",
            "defaults.labels={weather: rain}",
            "defaults.negative_prompt=''",
            "no_progress_timeout_s=90.5",
            "manifest=s3://bucket/a=b.parquet",
        ],
    )
    assert (config.video.crf, config.stages.denoise.num_gpus, config.stages.denoise.replicas.max) == (18, 0.5, 2)
    assert (config.stages.encode.num_cpus, config.model.dtype) == (2.0, "bfloat16")
    assert config.defaults == {"num_frames": 33, "labels": {"weather": "rain"}, "negative_prompt": ""}
    assert (config.no_progress_timeout_s, config.manifest) == (90.5, "s3://bucket/a=b.parquet")


def test_a_pool_may_have_a_range_of_workers(written):
    stages = load_config(written(MINIMAL + "stages: {denoise: {replicas: {min: 2, max: 8}}}\n")).stages
    assert (stages.denoise.replicas.min, stages.denoise.replicas.max) == (2, 8)
    stages = load_config(written(MINIMAL), ["stages.decode.replicas.max=3"]).stages
    assert (stages.decode.replicas.min, stages.decode.replicas.max) == (1, 3)


def test_an_override_fills_a_section_that_the_file_leaves_empty(written):
    assert load_config(written(MINIMAL + "video:\n"), ["video.crf=18"]).video.crf == 18


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("video.crf", "override 'video.crf' is not of the form key=value, e.g. video.crf=18"),
        ("=18", "override '=18' is not of the form key=value, e.g. video.crf=18"),
        ("video..crf=18", "override 'video..crf=18' is not of the form key=value, e.g. video.crf=18"),
        ("manifest.file=a", "override 'manifest.file=a': 'manifest' is a value, not a section"),
        ("model.variant.name=a", "override 'model.variant.name=a': 'model.variant' is a value, not a section"),
        ("video.crf=99", "video.crf: 99 is more than 51; use 51 or less"),
        ("video.crf=low", "video.crf: 'low' is not a whole number; give one"),
        ("video.codec=h265", "video.codec is no setting; use one of crf, preset, threads"),
        ("stages.denoise.replica=2", "stages.denoise.replica is no setting; did you mean 'replicas'?"),
        ("stages.denois.replicas=2", "stages.denois is no setting; did you mean 'denoise'?"),
        ("modle.dtype=auto", "modle is no setting; did you mean 'model'?"),
        ("stages.denoise.replicas=0", "stages.denoise.replicas.min: 0 is less than 1; use 1 or more"),
        ("stages.decode.replicas={min: 4, max: 2}", "stages.decode.replicas: min=4 is more than max=2; swap them"),
        ("stages.decode.replicas={max: 2, mni: 1}", "stages.decode.replicas.mni is no setting; did you mean 'min'?"),
        ("stages.decode.replicas=many", "stages.decode.replicas: 'many' is neither a number of workers nor a range"),
        ("stages.decode.replicas=true", "stages.decode.replicas: True is neither a number of workers nor a range"),
        ("stages.denoise.num_gpus=1.5", "stages.denoise.num_gpus: 1.5 is neither a part of one GPU nor a whole number"),
        ("stages.denoise.num_gpus=.inf", "stages.denoise.num_gpus: inf is not a finite number; give one"),
        ("no_progress_timeout_s=.nan", "no_progress_timeout_s: nan is not a finite number; give one"),
        ("model.dtype=fp8", "model.dtype: 'fp8' is not known; use 'auto', 'float32', 'bfloat16' or 'float16'"),
        ("video=[18]", "video: [18] is not a section of settings; write them as name: value"),
        ("defaults.num_frames=80", "defaults: num_frames: 80 is not 4n+1, the VAE's step in time; use 77 or 81"),
        ("defaults.frame_num=81", "defaults: column 'frame_num' is not known; did you mean 'num_frames'? Rename it"),
        ("defaults.id=a", "defaults: 'id' is not a column that can have a default; use one of task, negative_prompt,"),
        ("defaults.source=a", "defaults: 'source' is not a column that can have a default; use one of task,"),
        ("defaults.width=480", "defaults: width=480, height=None: give both or neither"),
        ("model.variant=t2v-2B", "model.variant: 't2v-2B' is not known; use one of " + ", ".join(VARIANTS)),
        ("model.checkpoint=7", "model.checkpoint: 7 is not text; write it as a string"),
        ("model.quantization=fp8", "model.quantization: 'fp8' is not known; use 'none', 'int8' or 'float8'"),
    ],
)
def test_a_wrong_setting_is_named_with_its_rule(written, override, message):
    assert refusal(written(MINIMAL + "manifest: m.parquet\n"), override).startswith(message)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ("model.offload=blocks", "offload='blocks'"),
        ("model.offload=model", "offload='model'"),
        ("model.gang={ulysses_degree: 2, fsdp: true}", "gang.fsdp=true"),
    ],
)
def test_quantized_weights_are_neither_moved_nor_divided(written, other, named):
    file = written(MINIMAL)
    said = refusal(file, "model.quantization=int8", other)
    assert said.startswith(f"model: quantization='int8' does not go with {named}: weights of 8 bits are neither moved")
    assert load_config(file, ["model.quantization=none", other]).model.quantization == "none"
    gang = load_config(file, ["model.quantization=float8", "model.gang={cfg_degree: 2, ulysses_degree: 2}"])
    assert (gang.model.quantization, gang.model.leaner) == ("float8", None)


def test_an_override_that_is_no_yaml_is_named(written):
    assert refusal(written(MINIMAL), "video.crf=[1").startswith("override 'video.crf=[1': the value is not YAML: ")


def test_every_wrong_setting_is_named_at_once(written):
    assert refusal(written("model: {checkpoint: c}\nvideo: {crf: 99}\n")) == (
        "model.variant: missing, and there is no default; give one; video.crf: 99 is more than 51; use 51 or less"
    )


def test_a_config_names_one_model_or_a_list_of_different_ones(written):
    assert refusal(written("video: {crf: 9}\n")) == "give either model, for one, or models, for a list of them"
    twice = "models: [{variant: debug, checkpoint: a}, {variant: debug, checkpoint: b}]\n"
    assert refusal(written(twice)) == "models: debug, debug names a variant twice; rows could not tell them apart"
    both = "models: [{variant: debug, checkpoint: a}, {variant: debug-i2v, checkpoint: b}]\n"
    file = written(both)
    assert [model.checkpoint for model in load_config(file).all_models] == [str(file.parent / n) for n in "ab"]
    assert refusal(written("models: [{variant: debug, checkpoint: a, dtyp: x}]\n")) == (
        "models.0.dtyp is no setting; did you mean 'dtype'?"
    )


def test_what_is_no_config_at_all_is_told_apart(written, tmp_path):
    missing = tmp_path / "none.yaml"
    assert refusal(missing) == " cannot be read: No such file or directory"
    assert refusal(tmp_path) == " cannot be read: Is a directory"
    assert refusal(written("model: [\n")).startswith(" is not YAML: while parsing")
    assert refusal(written("")) == " holds NoneType, not a mapping of settings"
    assert refusal(written("- model\n")) == " holds list, not a mapping of settings"
    binary = written("")
    binary.write_bytes(b"\xff\xfe\x00")
    assert refusal(binary).startswith(" is not YAML: 'utf-8' codec can't decode")
    assert "1" in refusal(written(MINIMAL + "1: 2\n"))


def test_relative_paths_in_the_file_start_at_the_file_wherever_the_command_runs(written, tmp_path, monkeypatch):
    text = "model: {variant: debug, checkpoint: weights, companions: ../other}\nmanifest: m.parquet\noutput: out\n"
    file = written(text)
    monkeypatch.chdir(tmp_path)
    for config in (load_config(file), load_config("run/config.yaml")):
        assert Path(config.model.checkpoint) == tmp_path / "run" / "weights"
        assert config.model.companions == str(tmp_path / "other")
        assert config.manifest == str(tmp_path / "run" / "m.parquet")
        assert config.output == str(tmp_path / "run" / "out")


def test_relative_paths_in_overrides_start_at_the_working_directory(written, tmp_path, monkeypatch):
    file = written(MINIMAL + "output: out\n")
    monkeypatch.chdir(tmp_path)
    config = load_config(file, ["model.checkpoint=weights", "manifest=./m.parquet", "output=s3://bucket/out"])
    assert Path(config.model.checkpoint) == tmp_path / "weights"
    assert config.manifest == str(tmp_path / "m.parquet")
    assert config.output == "s3://bucket/out"
    whole = load_config(file, ["model={variant: debug, checkpoint: weights}"])
    assert Path(whole.model.checkpoint) == tmp_path / "weights"


def test_urls_and_absolute_paths_stay_as_they_are(written):
    text = "model: {variant: debug, checkpoint: 's3://b/wan'}\nmanifest: /data/m.parquet\noutput: ~/out\n"
    config = load_config(written(text))
    assert (config.model.checkpoint, config.manifest, config.output) == ("s3://b/wan", "/data/m.parquet", "~/out")


def test_a_config_travels_between_processes_and_cannot_be_changed():
    config = RenderConfig(model=ModelSection(variant="t2v-14B", checkpoint="x"), defaults={"seed": 1})
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(ValueError, match="frozen"):
        config.output = "elsewhere"  # type: ignore[misc]


@pytest.mark.parametrize("entry", ["https://cdn.example.com", "*.example.com", "cdn.example.com/a", "10.0.0.0/33", ""])
def test_a_media_host_that_could_never_match_is_refused(written, entry):
    path = written(f"{MINIMAL}serve: {{allowed_media_hosts: ['{entry}']}}\n")
    assert refusal(path).startswith(f"serve.allowed_media_hosts: {entry!r} is no host")


def test_media_hosts_are_names_addresses_and_networks(written):
    config = load_config(written(f"{MINIMAL}serve: {{allowed_media_hosts: [CDN.example.com, 10.0.0.0/8, '::1']}}\n"))
    assert config.serve.allowed_media_hosts == ("cdn.example.com", "10.0.0.0/8", "::1")
