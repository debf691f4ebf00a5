"""Every YAML under cluster/ fits its schema, offline, and they agree with each other and with the package.

The cluster launcher's schema comes with Ray, Kubernetes' with kubernetes-validate. No package has KubeRay's: our own
kuberay_fields.json holds the fields we use, and KUBERAY_CRDS=FOLDER checks against the CRDs of a KubeRay release too.
"""

import copy
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from wan_ray.cli import main
from wan_ray.config import load_config
from wan_ray.errors import ConfigError

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
LAUNCHER = sorted(CLUSTER.glob("*.yaml"))
KUBERNETES = sorted((CLUSTER / "kuberay").glob("*.yaml"))
KUBERAY_FIELDS = json.loads((Path(__file__).parent / "kuberay_fields.json").read_text())
KUBERNETES_VERSION = "1.31"
IMAGE = "registry.example.com/wan-ray:0.1.0"
CRDS = os.environ.get("KUBERAY_CRDS")


def documents() -> list[dict]:
    return [document for file in KUBERNETES for document in yaml.safe_load_all(file.read_text())]


def of_ray() -> list[dict]:
    return [document for document in documents() if document["apiVersion"] == "ray.io/v1"]


def cluster_of(document: dict) -> dict:
    spec = document["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def groups(document: dict) -> list[dict]:
    return [cluster_of(document)["headGroupSpec"], *cluster_of(document)["workerGroupSpecs"]]


def validate_kubernetes(resource: dict) -> None:
    kubernetes_validate.validate(resource, KUBERNETES_VERSION, strict=True)


def as_pod_template(group: dict) -> dict:
    return {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "any"}, "template": group["template"]}


def paths(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Names of all settings, without the positions in lists."""
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield (*path, name)
        yield from paths(inner, (*path, name))
    for inner in value if isinstance(value, list) else ():
        yield from paths(inner, path)


def misspelt(value: dict, path: tuple[str, ...]) -> dict:
    """A copy in which the last name of the path is spelt wrong."""
    changed = copy.deepcopy(value)
    inner = changed
    for name in path[:-1]:
        inner = inner[name]
        while isinstance(inner, list):
            inner = inner[0]
    inner[path[-1] + "x"] = inner.pop(path[-1])
    return changed


@pytest.mark.parametrize("file", LAUNCHER, ids=lambda file: file.name)
def test_launcher_configs_fit_ray_s_schema(file: Path) -> None:
    config = yaml.safe_load(file.read_text())
    validate_config(prepare_config(config))
    kind = next(name for name in config["available_node_types"] if name != config["head_node_type"])
    for path in (("docker", "run_options"), ("available_node_types", kind, "min_workers")):
        with pytest.raises(jsonschema.ValidationError):
            validate_config(prepare_config(misspelt(config, path)))


@pytest.mark.parametrize("document", of_ray(), ids=lambda document: document["kind"])
def test_kuberay_manifests_have_only_fields_that_kuberay_has(document: dict) -> None:
    validator = jsonschema.Draft7Validator(KUBERAY_FIELDS)
    validator.validate(document)
    ours = [path for path in paths(document) if "template" not in path[:-1] and "rayStartParams" not in path[:-1]]
    assert len(ours) > 15
    for path in ours:
        if path[:-1] != ("metadata",):
            assert not validator.is_valid(misspelt(document, path)), path


@pytest.mark.parametrize("document", documents(), ids=lambda document: document["kind"])
def test_pods_volumes_and_jobs_fit_kubernetes_own_schema(document: dict) -> None:
    resources = [as_pod_template(group) for group in groups(document)] if document in of_ray() else [document]
    for resource in resources:
        validate_kubernetes(resource)
        with pytest.raises(kubernetes_validate.ValidationError):
            validate_kubernetes({**resource, "specc": {}})


@pytest.mark.skipif(not CRDS, reason="KUBERAY_CRDS names no folder with the ray.io_*.yaml of a KubeRay release")
@pytest.mark.parametrize("document", of_ray(), ids=lambda document: document["kind"])
def test_kuberay_manifests_fit_the_released_crds(document: dict) -> None:
    assert CRDS is not None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    crd = yaml.load((Path(CRDS) / f"ray.io_{document['kind'].lower()}s.yaml").read_text(), loader)
    (version,) = (v for v in crd["spec"]["versions"] if v["name"] == "v1")
    strict = closed(version["schema"]["openAPIV3Schema"])
    validator = jsonschema.Draft7Validator(strict)
    validator.validate(document)
    inside = {"RayCluster": ("spec",), "RayJob": ("spec", "rayClusterSpec"), "RayService": ("spec", "rayClusterConfig")}
    assert not validator.is_valid(misspelt(document, (*inside[document["kind"]], "rayVersion")))


def closed(schema: dict) -> dict:
    """The schema with no properties but those it names; metadata, which a CRD leaves to Kubernetes, stays open."""
    if not isinstance(schema, dict):
        return schema
    changed = {name: closed(inner) for name, inner in schema.items() if name != "properties"}
    if schema.get("x-kubernetes-int-or-string"):
        changed["type"] = ["integer", "string"]
        changed.pop("anyOf", None)
    if "properties" in schema:
        changed["properties"] = {name: closed(inner) for name, inner in schema["properties"].items()}
        changed.setdefault("additionalProperties", False)
    return changed


def test_all_of_them_name_one_image_of_this_version_and_the_ray_that_is_installed_in_it() -> None:
    version = (ROOT / "wan_ray" / "version.py").read_text()
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert f'VERSION = "{IMAGE.rpartition(":")[2]}"' in version
    templates = [group["template"] for document in of_ray() for group in groups(document)]
    templates += [d["spec"]["template"] for d in documents() if d["kind"] == "Job"]
    containers = [container for template in templates for container in template["spec"]["containers"]]
    images = {container["image"] for container in containers}
    images |= {yaml.safe_load(file.read_text())["docker"]["image"] for file in LAUNCHER}
    assert images == {IMAGE}
    assert {cluster_of(document)["rayVersion"] for document in of_ray()} == {pinned["ray"]}


@pytest.mark.parametrize("document", of_ray(), ids=lambda document: document["kind"])
def test_pods_mount_the_models_run_as_the_image_s_user_and_have_time_to_drain(document: dict) -> None:
    (claim,) = (d["metadata"]["name"] for d in documents() if d["kind"] == "PersistentVolumeClaim")
    for group in groups(document):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        assert volumes["models"]["persistentVolumeClaim"]["claimName"] == claim
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert not [one for one in container.get("env", []) if "KEY" in one["name"] or "TOKEN" in one["name"]]
    for group in cluster_of(document)["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        (drain_s,) = (float(one["value"]) for one in pod["containers"][0]["env"])
        assert pod["terminationGracePeriodSeconds"] > drain_s
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_worker_groups_and_node_types_have_the_gpus_that_their_names_say() -> None:
    for document in of_ray():
        for group in cluster_of(document)["workerGroupSpecs"]:
            count = group["groupName"].removeprefix("gpu-").partition("x")[0]
            assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == count
    for file in LAUNCHER:
        for name, kind in yaml.safe_load(file.read_text())["available_node_types"].items():
            if "GPU" in kind["resources"]:
                assert name.startswith(f"gpu_{kind['resources']['GPU']}x")


def test_the_job_s_entrypoint_fits_its_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pandas

    (job,) = (document for document in of_ray() if document["kind"] == "RayJob")
    program, script, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert (program, script) == ("python", "/app/jobs/render.py")
    config_file = ROOT / Path(arguments[0]).relative_to("/app")
    pandas.DataFrame({"prompt": ["A red car", "A tunnel"]}).to_parquet(tmp_path / "manifest.parquet")
    places = ["--manifest", str(tmp_path / "manifest.parquet"), "--output", str(tmp_path / "clips")]
    assert [arguments[1], arguments[3]] == ["--manifest", "--output"]
    assert main(["plan", str(config_file), *places]) == 0
    assert "2 rows" in capsys.readouterr().out
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    config = load_config(config_file)
    stages = [getattr(config.stages, name) for name in type(config.stages).model_fields]
    has = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert sum(s.replicas.max * s.num_gpus for s in stages) <= group["replicas"] * int(has["nvidia.com/gpu"])
    assert config.all_models[0].checkpoint.startswith("/models/")


def test_the_service_s_application_fits_serve_s_schema_and_its_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

    from wan_ray.graph.online import KEYS_VARIABLE, build
    from wan_ray.serving.keys import key_line, new_key

    (service,) = (document for document in of_ray() if document["kind"] == "RayService")
    deployed = yaml.safe_load(service["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(deployed)  # which lets unknown names pass
    (application,) = deployed["applications"]
    assert set(deployed) <= set(ServeDeploySchema.model_fields)
    assert set(application) <= set(ServeApplicationSchema.model_fields)
    assert application["import_path"] == f"{build.__module__}:{build.__name__}"
    arguments = application["args"] | {
        "config": str(ROOT / Path(application["args"]["config"]).relative_to("/app")),
        "overrides": ["output=memory://served"],
    }
    with pytest.raises(ConfigError, match="key"):
        build(arguments)
    monkeypatch.setenv(KEYS_VARIABLE, key_line("ann", new_key()))
    build(arguments)
    with pytest.raises(ConfigError, match="overides"):
        build({**arguments, "overides": []})
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    stages = load_config(arguments["config"]).stages
    wanted = sum(getattr(stages, name).num_gpus for name in ("encode", "denoise", "decode"))
    has = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert wanted <= group["replicas"] * int(has["nvidia.com/gpu"])


def test_configs_that_comments_name_exist() -> None:
    for file in (*LAUNCHER, *KUBERNETES):
        for pattern in [word for word in file.read_text().split() if word.startswith("configs/")]:
            assert list(ROOT.glob(pattern.rstrip(".,:"))), f"{file.name}: {pattern}"
