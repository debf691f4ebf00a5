"""A plain HTTP client of /v1/videos for tests: it hides nothing that is on the wire."""

import functools
import re
import time
from dataclasses import dataclass
from typing import Any

import jsonschema
import requests

from wan_ray.media.image import encode_png

ENDED = ("completed", "failed", "cancelled")


@dataclass(frozen=True)
class VideoClient:
    """url is the server's, without a path; key is sent with each request."""

    url: str
    key: str = "any"

    def send(self, method: str, path: str, **options: Any) -> requests.Response:
        """The answer, whatever its status."""
        headers = {"Authorization": f"Bearer {self.key}", **options.pop("headers", {})}
        answer = requests.request(method, self.url + path, headers=headers, timeout=60, **options)
        check_documented(documentation(self.url), method, path, answer)
        return answer

    def create(self, prompt: str = "a road", *, headers: dict[str, str] | None = None, **fields: Any) -> dict[str, Any]:
        """The Video object of an accepted job."""
        answer = self.send("POST", "/v1/videos", json={"prompt": prompt, **fields}, headers=headers or {})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refused(self, path: str = "/v1/videos", **options: Any) -> tuple[int, dict[str, Any]]:
        """Status and error object of a POST that is refused."""
        answer = self.send("POST", path, **options)
        assert answer.status_code >= 400, answer.text
        assert answer.headers["x-request-id"].startswith("req_")
        assert set(answer.json()) == {"error"}
        return answer.status_code, answer.json()["error"]

    def get(self, path: str) -> Any:
        """JSON of a GET that must succeed."""
        answer = self.send("GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def until_ended(self, video_id: str, *, within_s: float = 120) -> dict[str, Any]:
        """The Video object at its end."""
        end = time.monotonic() + within_s
        while (video := self.get(f"/v1/videos/{video_id}"))["status"] not in ENDED:
            assert time.monotonic() < end, video
            time.sleep(0.05)
        return video


@functools.cache
def documentation(url: str) -> dict[str, Any]:
    """What /openapi.json of the server says."""
    return requests.get(f"{url}/openapi.json", timeout=60).json()


def check_documented(told: dict[str, Any], method: str, path: str, answer: requests.Response) -> None:
    """Assert that the server's documentation told of such an answer: its status, its type and its form."""
    place = path.partition("?")[0]
    routes = [route for route in told["paths"] if re.fullmatch(re.sub(r"{[^}]+}", "[^/]+", route), place)]
    route = min(routes, key=lambda route: route.count("{"), default=None)
    if route is None or method.lower() not in told["paths"][route]:
        assert answer.status_code in (404, 405), (method, path, answer.status_code)
        return
    responses = told["paths"][route][method.lower()]["responses"]
    assert str(answer.status_code) in responses, (method, route, answer.status_code)
    content = responses[str(answer.status_code)].get("content", {})
    kind = answer.headers["content-type"].partition(";")[0]
    assert method == "HEAD" or kind in content, (method, route, answer.status_code, kind)
    if method != "HEAD" and kind == "application/json":
        schema = {**content[kind]["schema"], "components": told["components"]}
        jsonschema.Draft202012Validator(schema).validate(answer.json())


def png(width: int = 64, height: int = 48) -> bytes:
    """A sound picture."""
    import numpy as np

    return encode_png(np.full((height, width, 3), 128, dtype=np.uint8))
