"""Sources on real HTTP servers: such as send parts of a file, such as send it whole, and such as refuse."""

import io
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from wan_ray.errors import RequestError, StorageError
from wan_ray.media import source as source_module
from wan_ray.media.check import MediaCheck
from wan_ray.media.clip_source import load_video
from wan_ray.media.image import load_image
from wan_ray.media.source import local_file, read_source
from wan_ray.media.video import encode_mp4

NOISE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
LARGE = np.random.default_rng(1).bytes(9_000_000)  # more than a driver reads ahead


def png():
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, "PNG")
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    """/<way>/<name>: "parts" honours Range, "whole" ignores it, "stream" tells no length, a number is the answer."""

    files: dict[str, bytes]
    sent: list[int]

    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def _answer(self, *, with_body):
        _, way, name = self.path.split("/")
        if way.isdigit():
            return self.send_error(int(way))
        if name not in self.files:
            return self.send_error(404)
        data, asked = self.files[name], re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if way == "parts" and asked:
            first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            data = data[first : last + 1]
        else:
            self.send_response(200)
        if way != "stream":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if with_body:
            self.sent.append(len(data))
            for at in range(0, len(data), 65536):
                try:
                    self.wfile.write(data[at : at + 65536])
                except OSError:  # the client has seen enough
                    return None
        return None

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    video = tmp_path_factory.mktemp("http") / "v.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (20, 128, 192, 3), np.uint8)
    encode_mp4([frames], path=video, width=192, height=128, fps=16, crf=10, preset="ultrafast", threads=1)
    Handler.files = {"a.png": png(), "large": LARGE, "v.mp4": video.read_bytes(), "t.txt": b"hello", "empty": b""}
    Handler.sent = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


WAYS = ("parts", "whole", "stream")


@pytest.mark.parametrize("way", WAYS)
def test_files_come_whole_from_any_server(server, way):
    assert read_source(f"{server}/{way}/large", what="image") == LARGE
    with local_file(f"{server}/{way}/large", what="control_video") as path:
        assert path.read_bytes() == LARGE
    np.testing.assert_array_equal(load_image(f"{server}/{way}/a.png"), NOISE)


@pytest.mark.parametrize("way", WAYS)
def test_media_are_checked_and_then_read(server, way):
    check = MediaCheck()
    check({"image": [f"{server}/{way}/a.png"], "control_video": [f"{server}/{way}/v.mp4"]})
    check({"first": [f"{server}/{way}/v.mp4"], "mask_video": [f"{server}/{way}/a.png"]})
    size = {"num_frames": 5, "fps": 16, "width": 192, "height": 128}
    assert load_video(f"{server}/{way}/v.mp4", **size).frame_indices == [0, 1, 2, 3, 4]
    for field, name in (("image", "t.txt"), ("control_video", "t.txt"), ("image", "v.mp4"), ("image", "empty")):
        with pytest.raises(RequestError, match=rf"^{field}: 'http://.*{name}'"):
            check({field: [f"{server}/{way}/{name}"]})


def test_a_large_video_is_not_fetched_whole_to_be_checked(server, monkeypatch):
    size = len(Handler.files["v.mp4"])
    monkeypatch.setattr(source_module, "_END_BYTES", size // 8)
    Handler.sent.clear()
    MediaCheck()({"control_video": [f"{server}/parts/v.mp4"]})
    assert 0 < sum(Handler.sent) < size
    MediaCheck()({"control_video": [f"{server}/whole/v.mp4"]})


@pytest.mark.parametrize("read", [read_source, lambda *args, **kwargs: local_file(*args, **kwargs).__enter__()])
@pytest.mark.parametrize("way", WAYS)
def test_a_limit_holds(server, way, read):
    with pytest.raises(RequestError, match=r"more than 100000 bytes; make it smaller"):
        read(f"{server}/{way}/large", what="image", max_bytes=100_000)


@pytest.mark.parametrize(
    ("path", "kind", "reason"),
    [
        ("parts/none.png", RequestError, "does not exist"),
        ("404/a.png", RequestError, "does not exist"),
        ("410/a.png", RequestError, "does not exist"),
        ("403/a.png", RequestError, "may not be read"),
        ("401/a.png", RequestError, "may not be read"),
        ("500/a.png", StorageError, "cannot be read: .*500"),
        ("503/a.png", StorageError, "cannot be read: .*503"),
        ("429/a.png", StorageError, "cannot be read: .*429"),
    ],
)
def test_an_answer_is_the_rows_fault_and_a_failure_is_not(server, path, kind, reason):
    for field in ("image", "control_video", "mask_video"):
        with pytest.raises(kind, match=rf"^{field}: .*{reason}"):
            MediaCheck()({field: [f"{server}/{path}"]})


def test_a_server_that_is_not_there_is_no_verdict():
    with pytest.raises(StorageError, match=r"cannot be read: .*127\.0\.0\.1"):
        read_source("http://127.0.0.1:9/a.png", what="image")


def test_without_the_package_the_extra_is_named():
    code = (
        "import sys; sys.modules['aiohttp'] = None\n"
        "from wan_ray.errors import RequestError\n"
        "from wan_ray.media.check import MediaCheck\n"
        "try: MediaCheck()({'image': ['https://host/a.png']})\n"
        "except RequestError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert re.match(r"image: 'https://host/a\.png' needs a package that is not here .*'wan-ray\[http\]'", said)
