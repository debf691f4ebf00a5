"""What all answers have: a request id, and errors in OpenAI's form, also those that nobody expected."""

import logging
import secrets
import time
from collections.abc import Mapping, MutableMapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from wan_ray.errors import JobNotFoundError, QueueDownError, QueueFullError, StorageError
from wan_ray.serving.api_error import ApiError
from wan_ray.serving.schemas import ErrorAnswer, ErrorDetail
from wan_ray.serving.service import Service
from wan_ray.wording import in_words

logger = logging.getLogger(__name__)

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_RETRY_AFTER_S = 5


class Answers:
    """ASGI middleware, the outermost: ids, counts, and an answer where an exception would have been none."""

    def __init__(self, app: ASGIApp, *, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request_id, status, began = f"req_{secrets.token_hex(16)}", 0, time.perf_counter()

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            logger.info("client left request_id=%s", request_id)
        except Exception:
            logger.exception("failed request_id=%s method=%s path=%s", request_id, scope["method"], scope["path"])
            if status:
                raise  # half an answer is out: the connection is to break, so that nobody takes it for a whole one
            answer = _error(500, "internal_error", f"the server failed; its log says why under {request_id}")
            await answer(scope, receive, send_with_id)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._service.traffic.add(scope["method"], route, status, time.perf_counter() - began)
        return None


def add_error_answers_(app: FastAPI) -> None:
    """Errors of ours, of the framework and of unknown routes, as objects that OpenAI's clients read."""

    @app.exception_handler(ApiError)
    async def _api_error(request: Request, error: ApiError) -> JSONResponse:
        return _error(error.status, error.code, error.message, param=error.param, headers=error.headers)

    @app.exception_handler(JobNotFoundError)
    async def _not_found(request: Request, error: JobNotFoundError) -> JSONResponse:
        return _error(404, "video_not_found", str(error), param="video_id")

    @app.exception_handler(QueueFullError)
    async def _full(request: Request, error: QueueFullError) -> JSONResponse:
        headers = {"retry-after": str(_RETRY_AFTER_S), "x-should-retry": "true"}
        return _error(429, "queue_full", str(error), headers=headers)

    @app.exception_handler(QueueDownError)
    async def _down(request: Request, error: QueueDownError) -> JSONResponse:
        headers = {"retry-after": str(_RETRY_AFTER_S)}
        return _error(503, "queue_unavailable", "the queue is being restarted; try again", headers=headers)

    @app.exception_handler(StorageError)
    async def _storage(request: Request, error: StorageError) -> JSONResponse:
        logger.warning("storage failed path=%s reason=%s", request.url.path, error)
        headers = {"retry-after": str(_RETRY_AFTER_S)}
        return _error(503, "storage_unavailable", "the store of jobs cannot be reached; try again", headers=headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = [{**one, "loc": one["loc"][1:]} for one in error.errors()]
        return _error(400, "invalid_value", "; ".join(map(in_words, problems)), param=str(problems[0]["loc"][-1]))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        route = f"{request.method} {request.url.path[:200]!r}"
        if error.status_code == 404:
            return _error(404, "unknown_url", f"{route} is not served here; /docs lists what is")
        if error.status_code == 405:
            message = f"{route}: this path has other methods; /docs lists them"
            return _error(405, "method_not_allowed", message, headers=error.headers)
        return _error(error.status_code, "http_error", str(error.detail), headers=error.headers)


def _error(
    status: int, code: str, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    answer = ErrorAnswer(error=ErrorDetail(message=message, type=kind, param=param, code=code))
    return JSONResponse(answer.model_dump(), status, dict(headers or {}))
