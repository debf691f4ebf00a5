"""The page in headless Chromium, against the real routes, queue and stages of tiny checkpoints."""

import io
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving_app import ServingApp, serving_app
from small_clips import decoded, numbered, write_mp4

from wan_ray.serving.jobs import Job
from wan_ray.serving.keys import Keys, key_line, new_key

playwright = pytest.importorskip("playwright.sync_api", reason="needs the playwright package")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)"),
    pytest.mark.timeout(180),
]
_QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
_FLAGS = [*_QUIET, "--disable-component-update", "--disable-sync"]
HOSTILE = 'It\'s "red" & $HOME `id` \\ !x;\n@file <b>雨夜</b> 100%'
DONE_MS = 60_000


@pytest.fixture(scope="module")
def server(
    debug_checkpoint: Path,
    debug_i2v_checkpoint: Path,
    debug_flf2v_checkpoint: Path,
    debug_vace_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServingApp]:
    """Every task; each denoising step takes a fifth of a second more."""
    models = {
        "debug": debug_checkpoint,
        "debug-i2v": debug_i2v_checkpoint,
        "debug-flf2v": debug_flf2v_checkpoint,
        "debug-vace": debug_vace_checkpoint,
    }
    defaults = {"num_frames": 5, "num_inference_steps": 4}
    with serving_app(tmp_path_factory.mktemp("page"), models=models, step_s=0.2, defaults=defaults) as app:
        yield app


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as tools:
        launched = tools.chromium.launch(executable_path=CHROMIUM, headless=True, args=_FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def opened(browser: "playwright.Browser") -> Iterator[Callable[..., "playwright.Page"]]:
    """opened(url, **context): the page there, ready. Whatever the browser complains of fails the test."""
    complaints: list[str] = []
    contexts = []

    def open_page(url: str, **settings: object) -> "playwright.Page":
        wide = {"viewport": {"width": 1280, "height": 900}, "locale": "en-GB"}
        context = browser.new_context(**{**wide, **settings})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: said.type not in ("error", "warning") or complaints.append(said.text))
        page.on(
            "request", lambda sent: complaints.append(sent.url) if not sent.url.startswith((url, "blob:")) else None
        )
        page.goto(url)
        page.wait_for_selector("#tasks input", state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    # The network's own note on an answer that is an error.
    assert [words for words in complaints if not words.startswith("Failed to load resource")] == []


def submit(page: "playwright.Page", prompt: str, **values: str) -> "playwright.Locator":
    """The card of the video that these values of the form make."""
    page.fill("#prompt", prompt)
    page.locator("#more").evaluate("(more) => { more.open = true; }")
    for name, value in values.items():
        if name in ("size", "solver"):
            page.select_option(f"#{name}", value)
        else:
            page.fill(f"#{name}", value)
    before = page.locator(".card").count()
    page.click("#submit")
    refusals = page.locator("#form .error:not([hidden])")
    playwright.expect(page.locator(".card").nth(before).or_(refusals.first)).to_be_attached()
    assert refusals.all_inner_texts() == []
    return page.locator(".card").first


def until(page: "playwright.Page", expression: str) -> None:
    """Wait until it is true. (wait_for_function has the page evaluate text, which its policy forbids.)"""
    end = time.monotonic() + DONE_MS / 1000
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"never came true: {expression}"
        page.wait_for_timeout(50)


def wait_for_status(card: "playwright.Locator", status: str) -> None:
    playwright.expect(card).to_have_attribute("data-status", status, timeout=DONE_MS)


def percentages(card: "playwright.Locator") -> list[float]:
    """What the card's bar shows until the video has ended."""
    return card.evaluate(
        """async (card) => {
            const seen = [];
            while (["queued", "in_progress"].includes(card.dataset.status)) {
                const bar = card.querySelector("progress");
                if (!bar.hidden && bar.value !== seen.at(-1)) seen.push(bar.value);
                await new Promise((done) => setTimeout(done, 20));
            }
            return seen;
        }"""
    )


def write_picture(path: Path, width: int, height: int) -> str:
    y, x = np.mgrid[:height, :width]
    Image.fromarray(np.stack([x * 255 // width, y * 255 // height, 0 * x + 90], -1).astype(np.uint8)).save(path)
    return str(path)


def newest_job(server: ServingApp) -> Job:
    return server.jobs.page("local", after=None, limit=1, order="desc").jobs[0]


def videos_of(server: ServingApp) -> list[dict]:
    return server.get("/v1/videos?limit=100")["data"]


def test_a_text_becomes_a_video_that_moves_forward_and_plays(
    server: ServingApp, opened: Callable, tmp_path: Path
) -> None:
    page = opened(server.url)
    with page.expect_request("**/events"):
        card = submit(page, "A red car on a wet road", seed="7", num_frames="9", num_inference_steps="20")
    seen = percentages(card)
    assert len(seen) >= 4
    assert seen == sorted(seen)
    wait_for_status(card, "completed")
    until(page, "document.querySelector('.thumb img')?.naturalWidth > 0")
    card.locator(".thumb").click()
    until(page, "document.querySelector('video.shown')?.currentTime > 0.2")
    said = card.locator("video").evaluate("(v) => [v.videoWidth, v.videoHeight, v.duration]")
    assert said == [160, 96, pytest.approx(9 / 16, abs=0.01)]
    with page.expect_download() as download:
        card.get_by_role("button", name="Download").click()
    assert re.fullmatch(r"video_\w+\.mp4", download.value.suggested_filename)
    download.value.save_as(tmp_path / "clip.mp4")
    frames = decoded(tmp_path / "clip.mp4", width=160, height=96)
    assert len(frames) == 9
    for index in (0, 4, 8):  # Chromium, which spreads color otherwise, shows what ffmpeg finds at that place
        distances = np.abs(shown_at(page, (index + 0.5) / 16) - frames).mean(axis=(1, 2, 3))
        assert np.argmin(distances) == index
        assert distances[index] < min(20, np.median(distances) / 2)
    assert videos_of(server)[0]["seed"] == 7


def shown_at(page: "playwright.Page", time_s: float) -> np.ndarray:
    pixels = page.locator("video.shown").evaluate(
        """async (video, time) => {
            video.pause();
            const found = new Promise((done) => video.addEventListener("seeked", done, { once: true }));
            video.currentTime = time;
            await found;
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
            const pen = canvas.getContext("2d");
            pen.drawImage(video, 0, 0);
            return [...pen.getImageData(0, 0, canvas.width, canvas.height).data];
        }""",
        time_s,
    )
    return np.array(pixels, np.int16).reshape(96, 160, 4)[..., :3]


def test_an_image_becomes_a_video_of_its_shape(server: ServingApp, opened: Callable, tmp_path: Path) -> None:
    page = opened(server.url)
    page.click("label[for=task-i2v]")
    page.click("#submit")  # what is missing is said at its place
    assert page.inner_text("#prompt-fault") == "Please fill this in."
    assert page.inner_text("#image-fault") == "Please choose a file."
    page.set_input_files("#image", write_picture(tmp_path / "tall picture.png", 96, 160))
    until(page, "document.querySelector('#image-files img').naturalHeight === 160")
    card = submit(page, "The picture comes to life")
    wait_for_status(card, "completed")
    card.locator(".thumb").click()
    until(page, "document.querySelector('video.shown')?.currentTime > 0.1")
    assert card.locator("video").evaluate("(v) => v.videoHeight > v.videoWidth")
    video = videos_of(server)[0]
    assert (video["task"], video["width"] < video["height"]) == ("i2v", True)


def test_two_images_become_a_video_from_one_to_the_other(server: ServingApp, opened: Callable, tmp_path: Path) -> None:
    page = opened(server.url)
    page.click("label[for=task-flf2v]")
    page.set_input_files("#image", write_picture(tmp_path / "first.png", 160, 96))
    page.set_input_files("#last_image", write_picture(tmp_path / "last.png", 160, 96))
    card = submit(page, "From one to the other", num_inference_steps="1")
    wait_for_status(card, "completed")
    assert {"image", "last_image"} <= set(newest_job(server).request)


# By mode: controls to fill, and options of the job that must come of them.
_WAYS = {
    "references": ({}, {}),
    "control": ({"process": "gray"}, {"process": "gray"}),
    "inpaint": (
        {"box-left": "8", "box-top": "16", "box-right": "80", "box-bottom": "64", "shape": "box", "expand": "0.1"},
        {"box": [8, 16, 80, 64], "shape": "box", "expand": 0.1},
    ),
    "outpaint": ({"ratio": "0.3"}, {"ratio": 0.3, "directions": ["left", "right"], "inner": True}),
    "extend": ({"num_last": "2"}, {"num_last": 2}),
    "boxes": ({}, {"paths": [[[8, 40, 48, 80], [104, 40, 144, 80]]]}),
}


def test_each_way_of_editing_reaches_the_model_as_it_was_chosen(
    server: ServingApp, opened: Callable, tmp_path: Path
) -> None:
    picture, clip = write_picture(tmp_path / "a.png", 64, 48), write_mp4(tmp_path / "clip.mp4", numbered(9))
    page = opened(server.url)
    page.click("label[for=task-vace]")
    for mode, (values, wanted) in _WAYS.items():
        page.select_option("#mode", mode)
        for file_input, file in (("#control_video", clip), ("#first", picture), ("#last", clip)):
            if page.locator(file_input).is_enabled():
                page.set_input_files(file_input, file)
        page.set_input_files("#reference_images", [picture, picture] if mode == "references" else [])
        if mode == "outpaint":
            for side in ("up", "down"):
                page.uncheck(f"[value={side}]")
            page.check("[name='vace[inner]']")
        for name in ("process", "shape"):
            if name in values:
                page.select_option(f"#{name}", values[name])
        card = submit(
            page, mode, num_inference_steps="1", **{k: v for k, v in values.items() if k not in ("process", "shape")}
        )
        job = newest_job(server)
        assert {"mode": mode, **wanted}.items() <= job.request["vace"].items()
        assert len(job.request.get("reference_images", ())) == (2 if mode == "references" else 0)
        wait_for_status(card, "completed")


def test_a_text_becomes_an_image_also_where_no_events_come_through(server: ServingApp, opened: Callable) -> None:
    page = opened(server.url)
    page.route("**/events", lambda route: route.abort())
    page.click("label[for=task-t2i]")
    assert page.locator("#num_frames").is_hidden()
    card = submit(page, "A still lake")
    wait_for_status(card, "completed")
    card.locator(".thumb").click()
    until(page, "document.querySelector('img.shown')?.naturalWidth === 160")
    with page.expect_download() as download:
        card.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename.endswith(".png")


def test_a_video_is_cancelled_and_then_deleted(server: ServingApp, opened: Callable) -> None:
    page = opened(server.url)
    wait_for_status(submit(page, "A long one", num_inference_steps="90"), "in_progress")
    behind = submit(page, "Behind it", num_inference_steps="2")
    card = page.locator(".card", has_text="A long one")
    card.get_by_role("button", name="Cancel").click()
    wait_for_status(card, "cancelled")
    assert [video["status"] for video in videos_of(server)[:2]][1] == "cancelled"
    wait_for_status(behind, "completed")
    card.get_by_role("button", name="Delete").click()
    page.keyboard.press("Escape")
    playwright.expect(card).to_have_count(1)
    before = [video["id"] for video in videos_of(server)]
    card.get_by_role("button", name="Delete").click()
    page.locator("#delete-dialog").get_by_role("button", name="Delete").click()
    playwright.expect(card).to_have_count(0)
    assert [video["id"] for video in videos_of(server)] == [before[0], *before[2:]]


def test_what_was_cancelled_is_tried_again_with_the_same_settings(server: ServingApp, opened: Callable) -> None:
    page = opened(server.url)
    card = submit(page, "Once more", seed="5", num_inference_steps="90")
    card.get_by_role("button", name="Cancel").click()
    wait_for_status(card, "cancelled")
    card.get_by_role("button", name="Try again").click()
    again = page.locator(".card").first
    playwright.expect(again).not_to_have_attribute("data-status", "cancelled")
    again.get_by_role("button", name="Cancel").click()
    wait_for_status(again, "cancelled")
    later, earlier = videos_of(server)[:2]
    assert (later["prompt"], later["seed"], later["remixed_from_video_id"]) == ("Once more", 5, earlier["id"])


def test_what_the_server_refuses_and_what_fails_is_said_in_words(
    server: ServingApp, opened: Callable, tmp_path: Path
) -> None:
    page = opened(server.url)
    page.fill("#prompt", "Too large")
    page.select_option("#size", "custom")
    page.fill("#width", "4096")
    page.fill("#height", "4090")
    page.click("#submit")
    assert page.inner_text("#height-fault") == "4080 or 4096."
    page.fill("#height", "4096")
    page.click("#submit")
    playwright.expect(page.locator("#width-fault")).to_contain_text("16777216 pixels are more than")
    page.click("label[for=task-i2v]")
    page.select_option("#size", "")
    page.set_input_files("#image", write_picture(tmp_path / "line.png", 4000, 2))
    card = submit(page, "A line")
    wait_for_status(card, "failed")
    playwright.expect(card.locator(".fault")).to_contain_text("crop the image to a less extreme aspect")


def test_the_list_outlives_a_reload_and_its_settings_can_be_used_again(server: ServingApp, opened: Callable) -> None:
    page = opened(server.url)
    card = submit(page, HOSTILE, seed="123", guidance_scale="3.5", num_inference_steps="1")
    wait_for_status(card, "completed")
    page.reload()
    card = page.locator(".card").first
    playwright.expect(card.locator(".prompt")).to_have_text(HOSTILE)
    assert page.locator(".prompt b").count() == 0  # text, not markup
    card.get_by_role("button", name="Use again").click()
    values = [page.input_value(f"#{name}") for name in ("prompt", "seed", "guidance_scale", "num_inference_steps")]
    assert values == [HOSTILE, "123", "3.5", "1"]


def test_the_curl_line_does_in_a_shell_what_the_form_does(server: ServingApp, opened: Callable, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    page = opened(server.url)
    page.click("label[for=task-i2v]")
    picture = write_picture(tmp_path / 'it\'s a "picture"; no, 雨.png', 64, 48)
    page.set_input_files("#image", picture)
    page.fill("#prompt", HOSTILE)
    page.click("summary")
    page.fill("#num_inference_steps", "1")
    page.click("#curl")
    line = page.input_value("#curl-line")
    page.click("#curl-copy")
    playwright.expect(page.locator("#curl-said")).to_have_text("Copied.")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "curl"
    said = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=30)
    video = json.loads(said.stdout)
    assert (video["prompt"], video["task"], video["num_inference_steps"]) == (HOSTILE, "i2v", 1)
    job = server.jobs.get("local", video["id"])
    with Image.open(io.BytesIO(Path(str(job.request["image"])).read_bytes())) as image:
        assert image.size == (64, 48)


def test_a_key_is_asked_for_and_kept_in_the_tab(debug_checkpoint: Path, opened: Callable, tmp_path: Path) -> None:
    key = new_key()
    with serving_app(
        tmp_path, models={"debug": debug_checkpoint}, keys=Keys.from_lines(key_line("ann", key))
    ) as guarded:
        page = opened(guarded.url)
        dialog = page.locator("#key-dialog")
        playwright.expect(dialog).to_be_visible()
        page.fill("#key-value", "wrong")
        page.keyboard.press("Enter")
        playwright.expect(page.locator("#key-wrong")).to_be_visible()
        page.fill("#key-value", key)
        page.keyboard.press("Enter")
        playwright.expect(dialog).to_be_hidden()
        playwright.expect(page.locator("#empty")).to_be_visible()
        card = submit(page, "Behind a key")
        wait_for_status(card, "completed")
        card.locator(".thumb").click()
        until(page, "document.querySelector('video.shown')?.currentTime > 0.1")
        page.click("#curl")
        assert '-H "Authorization: Bearer $WAN_RAY_API_KEY"' in page.input_value("#curl-line")
        assert key not in page.input_value("#curl-line")
        assert page.evaluate("JSON.stringify(localStorage)").find(key) == -1
        page.reload()
        playwright.expect(page.locator(".card .prompt")).to_have_text("Behind a key")


def test_all_can_be_done_with_the_keyboard(server: ServingApp, opened: Callable) -> None:
    page = opened(server.url)
    page.wait_for_load_state("networkidle")
    visited = []
    for _ in range(14):
        page.keyboard.press("Tab")
        visited.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        assert page.evaluate(_SHOWS_FOCUS), visited[-1]
        if visited[-1] == "submit":
            break
    assert visited == [
        *("Skip to the videos", "API", "key", "language", "task-t2v", "prompt", "size", "num_frames"),
        *("More options", "submit"),
    ]
    page.focus("#task-t2v")
    page.keyboard.press("ArrowRight")
    assert page.locator("#image").is_visible()
    page.keyboard.press("ArrowLeft")
    page.fill("#prompt", "By keyboard")
    page.press("#num_frames", "Enter")
    card = page.locator(".card").first
    playwright.expect(card.locator(".prompt")).to_have_text("By keyboard")
    wait_for_status(card, "completed")
    card.locator(".thumb").focus()
    page.keyboard.press("Enter")
    until(page, "document.activeElement.currentTime > 0.05")
    page.press("#key", "Enter")
    assert page.evaluate("document.activeElement.id") == "key-value"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "key"


# The control itself, or where it is not to be seen, its label or what is drawn around it.
_SHOWS_FOCUS = """() => {
    const one = document.activeElement;
    const places = [one, ...(one.labels ?? []), one.closest(".file")].filter(Boolean);
    return places.some((place) => parseFloat(getComputedStyle(place).outlineWidth) >= 2
        && getComputedStyle(place).outlineStyle !== "none" && getComputedStyle(place).opacity === "1");
}"""


@pytest.mark.parametrize("language", ["en-GB", "zh-CN"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_control_has_a_name_and_every_text_enough_contrast(
    server: ServingApp, opened: Callable, language: str, scheme: str
) -> None:
    page = opened(server.url, locale=language, color_scheme=scheme, reduced_motion="reduce")
    submit(page, "Named", num_inference_steps="1")
    page.click("summary")
    page.click("label[for=task-i2v]")
    page.click("#submit")
    nameless = page.evaluate(
        """[...document.querySelectorAll("input, select, textarea, button, a, progress, dialog")].filter((one) => {
            const by = one.getAttribute("aria-labelledby");
            const named = by ? document.getElementById(by) : one.labels?.[0] ?? one;
            return !(named.textContent.trim() || one.ariaLabel);
        }).map((one) => one.outerHTML)"""
    )
    assert nameless == []
    texts = page.evaluate(_CONTRASTS)
    assert len(texts) > 25
    assert [found for found in texts if found[1] < 4.5] == []


# WCAG 2's ratio of each visible text's color and the first color behind it that is not transparent.
_CONTRASTS = """() => {
    const levels = (color) => color.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
        .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (one) => {
        const found = levels(getComputedStyle(one).backgroundColor);
        return found.length < 4 || found[3] === 1 ? found : behind(one.parentElement);
    };
    return [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility()
        && [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim())).map((one) => {
        const [a, b] = [light(levels(getComputedStyle(one).color)), light(behind(one))];
        return [one.textContent.trim(), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
    });
}"""


@pytest.mark.parametrize("width", [320, 360, 800])
def test_nothing_is_cut_off_in_a_narrow_window_in_either_language(
    server: ServingApp, opened: Callable, width: int
) -> None:
    page = opened(server.url, viewport={"width": width, "height": 740})
    for expected in ("en", "zh-Hans"):
        assert page.evaluate("document.documentElement.lang") == expected
        for task in ("i2v", "t2i", "t2v"):
            page.click(f"label[for=task-{task}]")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.click("#language")
    page.click("#language")
    page.reload()
    assert page.evaluate("document.documentElement.lang") == "zh-Hans"
    assert page.inner_text("#submit") == "生成"
