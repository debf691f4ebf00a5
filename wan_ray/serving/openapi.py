"""What /openapi.json says of bodies and errors, which the routes read themselves."""

from typing import Any

from fastapi import FastAPI

from wan_ray.request import MAX_SIDE, MEDIA_FIELDS, RenderRequest
from wan_ray.serving.schemas import ErrorAnswer

_REF = "#/components/schemas/{model}"
_MEANINGS = {
    400: "The request breaks a rule, which the message states.",
    401: "No API key, or none of this server's.",
    403: "Without API keys: a page of another site had a browser ask.",
    404: "There is no such video, model or operation for this key.",
    408: "Its body came too slowly, or its own deadline passed.",
    409: "It contradicts what was done before; the same request fails again.",
    413: "The body is larger than this server takes.",
    415: "The body is neither JSON nor multipart/form-data, or compressed.",
    416: "The range has none of the clip's bytes.",
    429: "Too many requests or waiting jobs; nothing was accepted. See retry-after.",
    431: "The headers are larger than this server takes.",
    500: "The server failed; its log has the x-request-id.",
    503: "The queue or the store cannot be reached now. See retry-after.",
}
_WORDS_OF_JSON = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}
_ALWAYS = (400, 401, 403, 429, 431, 500, 503)
_JOB_PROPERTIES: dict[str, dict[str, Any]] = {
    "model": {"type": "string", "description": "One of /v1/models; else the first that renders the task."},
    "seconds": {"type": "string", "description": "Length of the clip, to the nearest 4n+1 frames at its rate."},
    "size": {"type": "string", "description": "Width x height in pixels, multiples of 16.", "example": "832x480"},
    "priority": {"type": "integer", "minimum": -100, "maximum": 100, "description": "The smaller, the earlier."},
    "deadline_s": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 604800,
        "description": "Seconds from now, after which the job is ended and counts as failed.",
    },
    "webhook_url": {"type": "string", "description": "Told, signed, when the job ends."},
    "metadata": {
        "type": "object",
        "additionalProperties": {"type": "string", "maxLength": 512},
        "maxProperties": 16,
        "description": "Given back with the video.",
    },
}
_SOURCE = {"type": "string", "description": "A data: URL, or an http(s) URL of a host that this server fetches from."}
_FILE = {"type": "string", "format": "binary"}
_CLIP = {"type": "string", "description": "The id of a completed video, a data: URL or an http(s) URL."}
_EXAMPLES = {
    "text to video": {"prompt": "a cat on a skateboard", "seconds": "5", "size": "832x480", "seed": 7},
    "image to video": {"prompt": "she waves", "task": "i2v", "input_reference": "data:image/png;base64,iVBORw0KGgo="},
}


def body_of(*needed: str, clip: bool = False, examples: dict[str, Any] | None = None) -> dict[str, Any]:
    """For a route's openapi_extra: a body as JSON and as a form, with the fields it must have."""
    content = {}
    for kind, source in (("application/json", _SOURCE), ("multipart/form-data", _FILE)):
        schema = _body_schema(source)
        schema["required"] = list(needed)
        if clip:
            schema["properties"]["video"] = _CLIP if source is _SOURCE else _FILE
        content[kind] = {"schema": schema}
    content["application/json"]["examples"] = {
        name: {"value": value} for name, value in (_EXAMPLES if examples is None else examples).items()
    }
    return {"requestBody": {"required": True, "content": content}}


def image_body() -> dict[str, Any]:
    """The body of /v1/images/generations."""
    body = body_of("prompt", examples={"still": {"prompt": "a red cube", "size": "832x480", "n": 1}})
    for content in body["requestBody"]["content"].values():
        properties = content["schema"]["properties"]
        for name in ("task", "num_frames", "seconds", "fps", "vace", "context_scale", "input_reference", *MEDIA_FIELDS):
            del properties[name]
        properties |= {
            "n": {"type": "integer", "minimum": 1, "maximum": 4, "default": 1},
            "response_format": {"type": "string", "enum": ["b64_json", "url"], "default": "b64_json"},
        }
    return body


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's responses: these, and those that any route may answer."""
    # Not by "model": that would have the type of the route's own answers, such as text/event-stream.
    content = {"application/json": {"schema": {"$ref": _REF.format(model="ErrorAnswer")}}}
    wanted = sorted({*statuses, *_ALWAYS})
    return {status: {"description": _MEANINGS[status], "content": content} for status in wanted}


def add_docs_(app: FastAPI, *, with_keys: bool) -> None:
    """Make app.openapi() say what is answered: our errors, not the framework's, and VACE's modes; and who may ask."""
    generate = app.openapi

    def documented() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generate()
            for operations in schema["paths"].values():
                for operation in operations.values():
                    operation["responses"].pop("422", None)  # we answer 400
                    for status, answer in operation["responses"].items():
                        if status >= "400" and "content" in answer:  # FastAPI takes them to be of the route's type
                            answer["content"] = {"application/json": next(iter(answer["content"].values()))}
            components = schema["components"]["schemas"]
            components.pop("HTTPValidationError", None)
            components.pop("ValidationError", None)
            answer = ErrorAnswer.model_json_schema(ref_template=_REF)
            components |= _row_schema()["$defs"] | answer.pop("$defs") | {"ErrorAnswer": answer}
            if with_keys:
                schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                for path, operations in schema["paths"].items():
                    for operation in operations.values() if path.startswith("/v1/") else ():
                        operation["security"] = [{"key": []}]
        return app.openapi_schema or {}

    app.openapi = documented


def _body_schema(source: dict[str, Any]) -> dict[str, Any]:
    fields = _row_schema()["properties"]
    properties = {name: field for name, field in fields.items() if name != "id"}
    properties |= dict.fromkeys(MEDIA_FIELDS, source) | _JOB_PROPERTIES
    for side in ("width", "height"):
        properties[side] = {"type": "integer", "minimum": 16, "maximum": MAX_SIDE, "multipleOf": 16}
    properties["reference_images"] = {"type": "array", "items": source, "maxItems": 16}
    properties["input_reference"] = {**source, "description": "OpenAI's name of image."}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _row_schema() -> dict[str, Any]:
    found: dict[str, Any] = _in_words_of_json(RenderRequest.model_json_schema(ref_template=_REF))
    return found


def _in_words_of_json(schema: Any) -> Any:
    """pydantic leaves its own names of bounds where a validator stands before them."""
    if isinstance(schema, list):
        return [_in_words_of_json(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {_WORDS_OF_JSON.get(name, name): _in_words_of_json(value) for name, value in schema.items()}
