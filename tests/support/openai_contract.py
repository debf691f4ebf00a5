"""What OpenAI's client must see of a server: python openai_contract.py URL, with some openai package on the path.

Prints a line of JSON: the client's version, the checks that held and those that did not. Run by test_openai_clients.py
in a process of its own for each generation of the client, so nothing of this package is imported.
"""

import json
import sys
import time
import traceback
import warnings
from collections.abc import Callable

# Every method of videos warns, for the Sora API is to end.
warnings.simplefilter("ignore", DeprecationWarning)

import openai  # noqa: E402

PROMPT = 'a cat\r\n日本 "x" \\ \t🐈'
CHECKS: list[Callable[[], None]] = []
client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key=sys.argv[2], timeout=60)
videos = client.videos
small = {"seed": 7, "num_frames": 5, "num_inference_steps": 2}
state: dict = {}


def check(function: Callable[[], None]) -> Callable[[], None]:
    CHECKS.append(function)
    return function


def create(prompt: str = "a road", *, key: str | None = None, size: str = "64x48", **fields: object) -> object:
    headers = {"Idempotency-Key": f"{key}-{openai.__version__}"} if key else {}
    return videos.create(prompt=prompt, size=size, extra_body={**small, **fields}, extra_headers=headers)


def raises(kind: type[openai.APIStatusError], call: Callable[[], object], code: str) -> openai.APIStatusError:
    try:
        call()
    except kind as error:
        assert error.code == code, (error.code, code)
        assert error.request_id and error.request_id.startswith("req_"), error.request_id
        assert error.type and error.message
        return error
    raise AssertionError(f"no {kind.__name__}")


@check
def create_is_queued_and_keeps_the_prompt() -> None:
    state["video"] = video = videos.create(prompt=PROMPT, model="wan2.1-debug", size="64x48", extra_body=small)
    assert (video.object, video.status, video.progress) == ("video", "queued", 0), video
    assert video.model_dump()["prompt"] == PROMPT
    assert (video.size, video.error, video.remixed_from_video_id) == ("64x48", None, None)
    assert type(video.created_at) is int and type(video.expires_at) is int


@check
def nothing_about_the_object_makes_the_client_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state["video"].model_dump_json()


@check
def fields_of_ours_come_back() -> None:
    video = create(metadata={"team": "a"}, labels={"scene": "鳥"}, guidance_scale=1.5, seconds="0.3").model_dump()
    assert (video["seed"], video["guidance_scale"], video["num_frames"]) == (7, 1.5, 5)
    assert (video["metadata"], video["labels"], video["seconds"]) == ({"team": "a"}, {"scene": "鳥"}, "0.3")


@check
def seconds_is_a_string_and_becomes_frames() -> None:
    video = videos.create(prompt="long", seconds="8", size="64x48", extra_body={"num_inference_steps": 2, "fps": 2})
    assert (video.seconds, video.model_dump()["num_frames"]) == ("8", 17)


@check
def a_file_is_an_input_reference() -> None:
    file = ("im.png", open(sys.argv[3], "rb"), "image/png")  # noqa: SIM115, PTH123
    video = videos.create(prompt="i2v", size="64x48", input_reference=file, extra_body=small)
    assert video.model_dump()["task"] == "i2v"
    assert videos.poll(video.id).status == "completed"


@check
def a_url_is_an_input_reference() -> None:
    for image_url in (sys.argv[4], sys.argv[5]):
        video = create("i2v", input_reference={"image_url": image_url})
        assert video.model_dump()["task"] == "i2v"


@check
def a_path_is_none() -> None:
    error = raises(openai.BadRequestError, lambda: create(input_reference="/etc/passwd"), "invalid_value")
    assert error.param == "input_reference" or error.param == "image"


@check
def poll_ends_with_completed() -> None:
    video = videos.poll(state["video"].id)
    assert (video.status, video.progress, video.error) == ("completed", 100, None)
    assert video.completed_at >= video.created_at


@check
def content_is_a_clip_and_pictures_of_it() -> None:
    for variant, signature, at in (("video", b"ftyp", 4), ("thumbnail", b"WEBP", 8), ("spritesheet", b"\xff\xd8", 0)):
        data = videos.download_content(state["video"].id, variant=variant).read()
        assert data[at : at + len(signature)] == signature, variant


@check
def a_failed_job_is_an_answer_with_a_code() -> None:
    late = {**small, "num_inference_steps": 100, "deadline_s": "0.1"}
    video = videos.create_and_poll(prompt="late", size="64x48", extra_body=late)
    assert (video.status, video.error.code) == ("failed", "deadline_error"), video
    state["failed"] = video


@check
def content_of_a_failed_job_is_a_bad_request() -> None:
    raises(openai.BadRequestError, lambda: videos.download_content(state["failed"].id), "video_not_ready")


@check
def content_before_the_end_is_a_bad_request() -> None:
    video = create("slow", num_inference_steps=100)
    raises(openai.BadRequestError, lambda: videos.download_content(video.id), "video_not_ready")
    cancelled = client.post(f"/videos/{video.id}/cancel", cast_to=type(video))
    assert cancelled.status == "cancelled", cancelled
    assert videos.poll(video.id).status == "cancelled"


@check
def a_list_goes_through_all_pages() -> None:
    ids = [video.id for video in videos.list(limit=2, order="asc")]
    assert len(ids) == len(set(ids)) >= 5, ids
    assert [video.id for video in videos.list(limit=3)] == ids[::-1]


@check
def a_remix_is_another_video() -> None:
    video = videos.remix(state["video"].id, prompt="a dog")
    found = video.model_dump()
    assert video.remixed_from_video_id == state["video"].id and video.id != state["video"].id
    assert (found["prompt"], found["seed"], video.size) == ("a dog", 7, "64x48")


@check
def the_same_key_makes_the_same_job() -> None:
    assert create("once", key="same").id == create("once", key="same").id


@check
def a_key_with_another_body_is_a_conflict() -> None:
    began = time.monotonic()
    raises(openai.ConflictError, lambda: create("other", key="same"), "idempotency_key_reused")
    assert time.monotonic() - began < 30


@check
def a_full_queue_is_a_rate_limit() -> None:
    patient = client.with_options(max_retries=0)
    full = lambda: [  # noqa: E731
        patient.videos.create(prompt="many", size="64x48", extra_body={**small, "num_inference_steps": 100})
        for _ in range(60)
    ]
    raises(openai.RateLimitError, full, "queue_full")
    for video in videos.list(limit=100):
        if video.status in ("queued", "in_progress"):
            videos.delete(video.id)


@check
def delete_says_so() -> None:
    deleted = videos.delete(state["video"].id)
    assert (deleted.id, deleted.object, deleted.deleted) == (state["video"].id, "video.deleted", True)


@check
def what_is_deleted_is_not_found() -> None:
    error = raises(openai.NotFoundError, lambda: videos.retrieve(state["video"].id), "video_not_found")
    assert error.param == "video_id"


@check
def an_unknown_model_is_not_found() -> None:
    raises(openai.NotFoundError, lambda: videos.create(prompt="x", model="sora-2"), "model_not_found")


@check
def a_bad_field_is_named() -> None:
    error = raises(openai.BadRequestError, lambda: create(num_frame=9), "unknown_parameter")
    assert error.param == "num_frame" and "num_frames" in error.message


@check
def a_bad_key_is_an_authentication_error() -> None:
    stranger = client.with_options(api_key="wr_not-a-key")
    raises(openai.AuthenticationError, stranger.videos.list, "invalid_api_key")


@check
def models_are_listed() -> None:
    assert {model.id for model in client.models.list()} == {"debug", "debug-i2v", "debug-vace"}
    assert client.models.retrieve("debug").object == "model"


@check
def an_image_comes_at_once() -> None:
    answer = client.images.generate(prompt="a cube", size="64x48", n=2, extra_body={"num_inference_steps": 2})
    assert len(answer.data) == 2 and all(image.b64_json.startswith("iVBORw0KGgo") for image in answer.data)


@check
def characters_say_that_they_are_not_served() -> None:
    if hasattr(videos, "get_character"):
        raises(openai.NotFoundError, lambda: videos.get_character("char_1"), "characters_not_supported")
    else:
        get = lambda: client.get("/videos/characters/char_1", cast_to=dict)  # noqa: E731
        raises(openai.NotFoundError, get, "characters_not_supported")


@check
def a_video_is_edited_and_extended() -> None:
    source = create("source")
    assert videos.poll(source.id).status == "completed"
    for path, more in (("edits", {}), ("extensions", {"seconds": "1"})):
        body = {"prompt": path, "video": {"id": source.id}, "num_inference_steps": 2, **more}
        made = client.post(f"/videos/{path}", body=body, cast_to=type(source))
        assert made.model_dump()["task"] == "vace" and made.remixed_from_video_id == source.id
        assert videos.poll(made.id).status == "completed", videos.retrieve(made.id)


def main() -> None:
    held, failed = [], {}
    for one in CHECKS:
        try:
            one()
            held.append(one.__name__)
        except Exception:  # noqa: BLE001
            failed[one.__name__] = traceback.format_exc()
    json.dump({"version": openai.__version__, "held": held, "failed": failed}, sys.stdout)


if __name__ == "__main__":
    main()
