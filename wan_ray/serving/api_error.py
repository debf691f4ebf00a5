"""ApiError: an answer that says what the client did wrong, in the form that OpenAI's clients read."""

from collections.abc import Mapping


class ApiError(Exception):
    """code is for programs, message for people (value, rule, fix), param names the field. Made into JSON by app.py."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = dict(headers or {})
