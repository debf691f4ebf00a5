import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from wan_ray.errors import StorageError
from wan_ray.media.image import encode_png
from wan_ray.media.video import encode_mp4
from wan_ray.report.page import write_report

HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp; \x00\x1b"
ARABIC = "سيارة حمراء على طريق ماطر"
VOID = {"meta", "img", "br"}
PASSWORD = "hunter2"


@dataclass
class Page(HTMLParser):
    """What a page holds; fails on a tag that is not closed in order."""

    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def __post_init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def read(file):
    page = Page()
    page.feed(Path(file).read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    return page


@pytest.fixture
def clip(record, tmp_path):
    """clip(name, seed, **fields): a record with a clip of noise in the output folder."""

    def make(name, *, seed=0, size=(64, 32), num_frames=5, **fields):
        width, height = size
        frames = np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), np.uint8)
        path = tmp_path / "out/clips" / f"{seed}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        encode_mp4([frames], path=path, width=width, height=height, fps=16, crf=10, preset="ultrafast", threads=1)
        shape = {"task": "t2v", "width": width, "height": height, "num_frames": num_frames, "seed": seed, "row": seed}
        return record(name, clip=f"clips/{seed}.mp4", variant="t2v-1.3B", **{**shape, **fields})

    return make


def test_the_page_holds_everything_and_asks_for_nothing(written, record, clip):
    seconds = {"encode": 0.5, "denoise": 20.0, "decode": 3.0, "publish": 0.1}
    labels = {"weather": "雪", "<b>key</b>": "</svg><script>"}
    records = [
        clip("sunny", seed=1, at=60, seconds=seconds, labels=labels, prompt="雪后的街道"),
        clip(HOSTILE, seed=2, at=90, seconds=seconds, labels=labels, prompt=HOSTILE),
        clip("rtl", seed=3, at=100, seconds=seconds, prompt=ARABIC),
        record("f", at=130, error_message=HOSTILE, error_type="<E>"),
    ]
    page = read(write_report(written(records)))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "base", "form"})
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.all("img"))
    assert len(page.all("img")) == 3
    assert [link["href"] for link in page.all("a")] == ["clips/1.mp4", "clips/2.mp4", "clips/3.mp4"]
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    text = "".join(page.texts)
    for wanted in (
        "雪后的街道",
        ARABIC,
        HOSTILE[:-2],
        "<b>key</b>",
        "</svg><script>",
        "<E>",
        "torch 2.9.0",
        "GPU-hours",
        # 60 s of denoising between the first clip's start, 23.6 s before its record, and the last record of work.
        "denoise194%",
        "denoise bounds the run",
    ):
        assert wanted in text
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f]", text)
    titles = [a["aria-labelledby"].split()[0].removesuffix("-title") for a in page.all("svg")]
    assert titles == ["throughput", "cost", "stages", "label0", "label1", "causes"]


def test_text_of_either_direction_stands_apart_from_what_surrounds_it(written, clip):
    page = read(write_report(written([clip("rtl", prompt=ARABIC)])))
    at = page.texts.index(ARABIC)
    assert at > 0
    assert {"dir": "auto"} in page.all("p")
    assert page.all("bdi")


def test_passwords_are_masked_wherever_they_come_from(written, clip, record):
    url = f"s3://me:{PASSWORD}@host/a?token={PASSWORD}"
    records = [clip(url, prompt=url), record(url, error_message=f"cannot open {url}", labels={url: url})]
    output = written(records, config={"manifest": url}, versions={"torch": url})
    page = Path(write_report(output)).read_text(encoding="utf-8")
    assert PASSWORD not in page
    assert page.count("me:***@host") > 6


def test_many_large_clips_of_noise_stay_under_five_megabytes(written, clip):
    records = [clip(f"c{seed}", seed=seed, size=(208, 120), prompt="长" * 5000) for seed in range(30)]
    file = Path(write_report(written(records)))
    page = read(file)
    assert file.stat().st_size < 5_000_000
    assert len(page.all("img")) == 24
    shown = [link["href"] for link in page.all("a")]
    assert (shown[0], shown[-1]) == ("clips/0.mp4", "clips/29.mp4")  # spread over the manifest


def test_a_clip_that_was_moved_or_broken_is_named_and_the_others_are_shown(written, clip, tmp_path):
    output = written([clip("whole", seed=1), clip("moved", seed=2), clip("broken", seed=3)])
    (tmp_path / "out/clips/2.mp4").unlink()
    (tmp_path / "out/clips/3.mp4").write_bytes(b"no video")
    page = read(write_report(output))
    assert len(page.all("img")) == 1
    assert [text for text in page.texts if "cannot be read" in text] == [
        "clips/2.mp4 cannot be read",
        "clips/3.mp4 cannot be read",
    ]


def test_a_page_elsewhere_has_no_links_that_would_lead_nowhere(written, clip, tmp_path):
    output = written([clip("a")])
    file = tmp_path / "elsewhere.html"
    assert write_report(output, file) == str(file)
    assert not (tmp_path / "out/report.html").exists()
    assert read(file).all("a") == []
    with pytest.raises(StorageError, match=r"cannot write .*nowhere/r.html"):
        write_report(output, tmp_path / "nowhere/r.html")


@pytest.mark.parametrize("names", [(), ("refused",)])
def test_a_run_that_rendered_nothing_has_a_page_too(names, written, record):
    records = [record(name, error_message="num_frames: 80", error_stage="read") for name in names]
    page = read(write_report(written(records)))
    assert [a["aria-labelledby"].split()[0] for a in page.all("svg")] == ["causes-title"] * len(names)


def test_a_still_image_is_shown(written, record, tmp_path):
    (tmp_path / "out/clips").mkdir(parents=True)
    (tmp_path / "out/clips/a.png").write_bytes(encode_png(np.full((32, 32, 3), 99, np.uint8)))
    page = read(write_report(written([record("a", task="t2i", width=32, height=32, clip="clips/a.png")])))
    assert len(page.all("img")) == 1
