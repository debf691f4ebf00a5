"""The section `extend` of a config: who rewrites prompts, and what holds for a rewrite."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

ExtendCase = Literal["text", "first_frame", "first_last_frame", "vace"]
ExtendLanguage = Literal["en", "zh", "prompt"]
_Word = Annotated[str, Field(min_length=1, pattern=r"\S")]


class ExtendWords(BaseModel):
    """What shows that a prompt keeps to a label: at least one of some words, and none of others."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    must_contain_any: tuple[_Word, ...] = ()
    must_not_contain: tuple[_Word, ...] = ()


class ExtendSection(BaseModel):
    """Who rewrites the prompts of rows with extend_prompt, and what holds for a rewrite.

    Keys come from the environment alone: DASH_API_KEY for "dashscope", OPENAI_API_KEY for "openai". base_url is a
    regional DashScope or any server that speaks OpenAI's chat completions, vLLM's for one; without it DASH_API_URL and
    OPENAI_BASE_URL count. "qwen" runs here: a folder or name on the Hugging Face hub, in dtype on device. image_model
    answers for rows with a first frame. language "prompt" is that of the prompt; without one flf2v is "zh", the rest
    "prompt". instructions replace ours, by case; words go by "label=value". A rewrite that breaks them is asked for
    once more; then fallback_template takes its place, with {prompt} and {label} filled in, or without one the prompt
    itself. on_failure says what becomes of a row when no rewrite could be had. rows_at_once are asked about together,
    max_tries is of one request. The limits hold for one run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    provider: Literal["dashscope", "openai", "qwen"]
    model: str | None = None
    image_model: str | None = None
    base_url: str | None = Field(None, pattern=r"^https?://[^\s/]")
    language: ExtendLanguage | None = None
    instructions: dict[ExtendCase, str] = {}
    words: dict[str, ExtendWords] = {}
    fallback_template: str | None = None
    on_failure: Literal["fall_back", "fail_row", "stop"] = "fall_back"
    seed: int = Field(0, ge=0, lt=2**31)
    rows_at_once: int = Field(8, ge=1, le=256)
    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)
    timeout_s: float = Field(60.0, gt=0)
    max_tries: int = Field(6, ge=1, le=20)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @field_validator("words")
    @classmethod
    def _name_labels(cls, value: dict[str, ExtendWords]) -> dict[str, ExtendWords]:
        for name in value:
            if not all(part.strip() for part in name.partition("=")):
                raise ValueError(f"{name!r} is not of the form label=value, e.g. weather=fog")
        return value

    @model_validator(mode="after")
    def _names_what_it_needs(self) -> "ExtendSection":
        if self.provider == "openai" and self.model is None:
            raise ValueError("model: provider 'openai' has no default one; name the server's")
        if self.provider == "qwen" and self.base_url is not None:
            raise ValueError("base_url: provider 'qwen' runs here; use provider 'openai' for a server of it")
        return self
