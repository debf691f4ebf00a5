"""The page's files and what it is told of the server, over HTTP; in a browser: test_page_in_browser."""

import json
import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from wan_ray.config import RenderConfig
from wan_ray.serving import page
from wan_ray.serving.page import page_routes

FOLDER = Path(page.__file__).parent / "page"
MODELS = ("t2v-1.3B", "i2v-14B-480P", "flf2v-14B", "vace-1.3B")


def client(*, models: tuple[str, ...] = MODELS, **settings: object) -> TestClient:
    sections = [{"variant": name, "checkpoint": f"/secret/{name}"} for name in models]
    app = FastAPI()
    app.include_router(page_routes(RenderConfig.model_validate({"models": sections, **settings})))
    return TestClient(app)


def test_the_page_and_all_it_refers_to_are_served_with_their_types() -> None:
    browser = client()
    index = browser.get("/")
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    found = set(re.findall(r'(?:src|href)="(/page/[^"]+)"', index.text))
    scripts = [path for path in found if path.endswith(".js")]
    while scripts:  # modules import others
        new = {f"/page/{name}" for name in re.findall(r'from "\./([^"]+)"', browser.get(scripts.pop()).text)} - found
        found |= new
        scripts += new
    kinds = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8", "svg": "image/svg+xml"}
    for path in found:
        answer = browser.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (200, kinds[path.rpartition(".")[2]])
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert {path.removeprefix("/page/") for path in found} | {"index.html"} == {f.name for f in FOLDER.iterdir()}


@pytest.mark.parametrize("path", ["/page/none.js", "/page/..%2fpage.py", "/page/%2e%2e/jobs.py", "/page/"])
def test_nothing_else_is_served(path: str) -> None:
    assert client().get(path).status_code == 404


def test_the_browser_is_told_to_load_nothing_from_elsewhere_and_to_run_nothing_inline() -> None:
    index = client().get("/")
    policy = dict(part.strip().split(" ", 1) for part in index.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in index.headers["content-security-policy"]
    for file in FOLDER.iterdir():
        addresses = set(re.findall(r"https?://[^\s\"'`]+", file.read_text(encoding="utf-8")))
        assert addresses <= {"http://www.w3.org/2000/svg"}, file.name
    assert not re.search(r"<script(?! type=\"module\" src=)|\son\w+=|\sstyle=", index.text)


def test_a_file_that_has_not_changed_is_not_sent_again() -> None:
    browser = client()
    etag = browser.get("/page/app.js").headers["etag"]
    again = browser.get("/page/app.js", headers={"if-none-match": etag})
    assert (again.status_code, again.content) == (304, b"")


def test_the_page_is_told_each_tasks_defaults_as_a_row_gets_them() -> None:
    told = client().get("/page/options.json").json()
    offers = {(offer["model"], offer["task"]): offer for offer in told["offers"]}
    assert list(offers) == [
        ("t2v-1.3B", "t2v"),
        ("t2v-1.3B", "t2i"),
        ("i2v-14B-480P", "i2v"),
        ("flf2v-14B", "flf2v"),
        ("vace-1.3B", "vace"),
    ]
    # The released defaults: 50 steps but 40 for I2V, whose 480P model shifts by 3; 16 for FLF2V and VACE.
    steps = [offer["defaults"]["num_inference_steps"] for offer in told["offers"]]
    shifts = [offer["defaults"]["flow_shift"] for offer in told["offers"]]
    assert (steps, shifts) == ([50, 50, 40, 50, 50], [5, 5, 3, 16, 16])
    still = offers["t2v-1.3B", "t2i"]
    assert (still["sizes"], still["defaults"]["num_frames"]) == (["832x480", "480x832"], 1)
    assert offers["i2v-14B-480P", "i2v"]["defaults"]["width"] == 0  # as the image
    assert "secret" not in json.dumps(told)


def test_the_configs_defaults_presets_and_limits_are_told() -> None:
    models = [{"variant": "t2v-14B", "checkpoint": "x", "preset": "lightx2v-4-step"}]
    config = {"models": models, "defaults": {"num_frames": 33, "seed": 1}, "serve": {"max_frames": 49}}
    app = FastAPI()
    app.include_router(page_routes(RenderConfig.model_validate(config)))
    told = TestClient(app).get("/page/options.json").json()
    clip, still = (offer["defaults"] for offer in told["offers"])
    assert (clip["num_inference_steps"], clip["guidance_scale"], clip["solver"]) == (4, 1, "euler")
    assert (clip["num_frames"], still["num_frames"]) == (33, 1)
    assert told["limits"]["num_frames"] == 49


def test_every_text_is_there_in_english_and_chinese() -> None:
    source = (FOLDER / "texts.js").read_text(encoding="utf-8")
    texts = dict(re.findall(r"^  (\w+): \[(.+?)\],$", source, re.MULTILINE | re.DOTALL))
    assert len(texts) > 100
    for key, pair in texts.items():
        english, chinese = json.loads(f"[{pair}]")
        assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", chinese)), key
        if key not in ("language", "copy"):
            assert not re.search("[一-鿿]", english), key
            assert re.search("[一-鿿]", chinese), key
    used = set()
    for file in FOLDER.iterdir():
        content = file.read_text(encoding="utf-8")
        used |= set(re.findall(r'data-(?:text|label|placeholder)="(\w+)"', content))
        used |= set(re.findall(r'\btext\("(\w+)"', content))
    assert used <= set(texts)
    built = re.compile(r"(\w+_hint|error_\w+|said_\w+|mode_\w+|ahead_\d)$")  # put together from a task or status
    spoken = " ".join(f.read_text(encoding="utf-8") for f in FOLDER.iterdir() if f.name != "texts.js")
    assert [key for key in texts if key not in used and not built.match(key) and key not in spoken] == []
