"""A language model over HTTP, with all that goes wrong on the way: against a server, over sockets."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from llm_server import KEY, LlmServer

from wan_ray.errors import ConfigError, RunStoppedError
from wan_ray.extend_section import ExtendSection
from wan_ray.prompt.pace import Breaker, Pace
from wan_ray.prompt.providers import make_extender
from wan_ray.stages.extend import ExtendStage

PROVIDERS = pytest.mark.parametrize("provider", ["dashscope", "openai"])
NUM_ROWS = 500
_ONCE = {1: "429:0.02", 2: "500", 3: "malformed", 4: "empty", 5: "cut", 6: "chunk", 9: "half"}


def number(text: str) -> int:
    return int(re.search(r"number (\d+)", text)[1])


def troubled(text: str, times: int) -> str | None:
    """Seven rows of ten fail once, five of 500 run into the timeout once, and twenty never get a rewrite."""
    row = number(text)
    if row % 50 == 7:
        return "500"
    if row % 50 == 8:
        return "400"
    if times > 0:
        return None
    return "timeout" if row % 100 == 10 else _ONCE.get(row % 10)


def is_lost(row: int) -> bool:
    return row % 50 in (7, 8)


@PROVIDERS
@pytest.mark.parametrize("policy", ["fall_back", "fail_row"])
def test_500_rows_end_right_whatever_the_service_does(
    provider: str, policy: str, server: LlmServer, section_of: Any, stage_of: Any, item_of: Any
) -> None:
    server.fault = troubled
    items = [item_of(f"A red car with number {row}.", id=f"row-{row}") for row in range(NUM_ROWS)]
    stage = stage_of(section_of(provider, on_failure=policy, rows_at_once=32, timeout_s=2.5))
    ended = stage.extend(items)
    assert [item.id for item in ended] == [item.id for item in items]
    for row, item in enumerate(ended):
        assert item.prompt == f"A red car with number {row}."
        if not is_lost(row):
            assert item.sound.prompt == f"A long shot. A red car with number {row}. It moves on, slowly and steadily."
            assert item.extension["prompt_source"] == "rewrite"
        elif policy == "fall_back":
            assert item.sound.prompt == item.prompt
            assert item.extension["prompt_source"] == "original"
            assert "HTTP 500" in item.extension["reason"] or "HTTP 400" in item.extension["reason"]
        else:
            assert item.failure is not None
            assert (item.failure.stage, item.failure.type) == ("extend", "ExtenderError")
    assert set(server.paid.values()) == {1}
    assert len(server.paid) == NUM_ROWS - 20
    tries = Counter({number(text): times for text, times in server.asked.items()})
    assert tries[7] == 6
    assert tries[8] == 1
    assert tries[10] == tries[1] == 2


@PROVIDERS
def test_a_run_that_is_to_stop_stops_and_what_was_answered_is_kept(
    provider: str, server: LlmServer, section_of: Any, stage_of: Any, item_of: Any, tmp_path: Path
) -> None:
    server.fault = troubled
    items = [item_of(f"A red car with number {row}.", id=f"row-{row}") for row in range(NUM_ROWS)]
    section = section_of(provider, on_failure="stop", rows_at_once=32, timeout_s=2.5)
    with pytest.raises(RunStoppedError, match=r"row 'row-\d+': .*HTTP [45]00.*on_failure is 'stop'"):
        stage_of(section, output=str(tmp_path)).extend(items)
    paid = sum(server.paid.values())
    assert paid == len(server.paid) == len(list((tmp_path / "prompts").iterdir()))
    assert list((tmp_path / "claims").iterdir()) == []
    server.fault = lambda *_: None
    ended = stage_of(section, output=str(tmp_path)).extend(items)
    assert all(item.extension["prompt_source"] == "rewrite" for item in ended)
    assert set(server.paid.values()) == {1}


def test_requests_in_any_minute_never_exceed_the_limit(
    server: LlmServer, section_of: Any, stage_of: Any, item_of: Any
) -> None:
    window_s, limit = 0.6, 12
    server.fault = lambda text, times: "429:0.05" if number(text) % 9 == 0 and times == 0 else None
    pace = Pace(requests_per_window=limit, window_s=window_s)
    stage = stage_of(section_of("openai", rows_at_once=30), pace=pace)
    stage.extend([item_of(f"A car, number {row}.") for row in range(60)])
    arrivals = sorted(server.arrivals)
    assert len(arrivals) == 67
    most = max(sum(start <= other < start + window_s for other in arrivals) for start in arrivals)
    assert limit // 2 < most <= limit


def test_tokens_count_by_what_the_answers_say(server: LlmServer, section_of: Any, stage_of: Any, item_of: Any) -> None:
    window_s = 0.5
    pace = Pace(tokens_per_window=2500, window_s=window_s)
    stage = stage_of(section_of("openai", rows_at_once=20), pace=pace)
    stage.extend([item_of(f"A car, number {row}.") for row in range(20)])
    arrivals = sorted(server.arrivals)
    # An answer costs 300 tokens, and a request is taken for some 1000 until it has its answer.
    assert max(sum(start <= other < start + window_s for other in arrivals) for start in arrivals) <= 8
    assert arrivals[-1] - arrivals[0] > window_s


def test_a_request_larger_than_the_limit_of_tokens_is_sent_alone(
    server: LlmServer, section_of: Any, stage_of: Any, item_of: Any
) -> None:
    stage = stage_of(section_of("openai"), pace=Pace(tokens_per_window=10, window_s=0.2))
    assert [i.extension["prompt_source"] for i in stage.extend([item_of(f"number {n}.") for n in range(3)])] == [
        "rewrite"
    ] * 3
    arrivals = sorted(server.arrivals)
    assert all(later - sooner >= 0.2 for sooner, later in pairwise(arrivals))


def test_retry_after_holds_everybody_back(server: LlmServer, section_of: Any, stage_of: Any, item_of: Any) -> None:
    def fault(text: str, times: int) -> str | None:
        if number(text) == 0 and times == 0:
            return "429:1.5"
        time.sleep(0.3)  # the others come back when the first one has been told
        return None

    server.fault = fault
    stage_of(section_of("openai", rows_at_once=3)).extend([item_of(f"A car, number {row}.") for row in range(6)])
    arrivals = sorted(server.arrivals)
    assert len(arrivals) == 7
    assert all(later - arrivals[0] >= 1.5 for later in arrivals[3:])


def test_a_dead_service_is_asked_a_few_times_and_then_left_alone(
    server: LlmServer, section_of: Any, stage_of: Any, item_of: Any
) -> None:
    server.fault = lambda *_: "500"
    breaker = Breaker(max_failures=10, pause_s=0.4)
    stage = stage_of(section_of("dashscope", rows_at_once=4), breaker=breaker)
    ended = stage.extend([item_of(f"A car, number {row}.") for row in range(200)])
    assert len(server.arrivals) <= 10 + 4 + 20  # and one for each pause, on a slow machine
    assert {item.extension["prompt_source"] for item in ended} == {"original"}
    assert "left alone for a while" in ended[-1].extension["reason"]
    server.fault = lambda *_: None
    deadline = time.monotonic() + 10
    while (again := stage(item_of(f"Back, number {time.monotonic_ns()}."))).extension["prompt_source"] != "rewrite":
        assert time.monotonic() < deadline
    assert again.failure is None


def test_a_refused_key_stops_the_run_and_is_in_no_message(
    server: LlmServer, section_of: Any, item_of: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("DASH_API_KEY", "sk-wrong-77")
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(RunStoppedError, match=r"HTTP 401.*check DASH_API_KEY") as stopped,
    ):
        ExtendStage(section_of("dashscope"), output=str(tmp_path)).extend([item_of("A car."), item_of("A van.")])
    assert "sk-wrong-77" not in str(stopped.value) + repr(stopped.value) + caplog.text
    assert "***" in str(stopped.value)


@PROVIDERS
def test_a_key_is_in_nothing_that_is_kept(
    provider: str, server: LlmServer, section_of: Any, item_of: Any, caplog: Any, tmp_path: Path
) -> None:
    server.fault = lambda text, times: "malformed" if times == 0 else None
    with caplog.at_level(logging.DEBUG):
        stage = ExtendStage(section_of(provider), output=str(tmp_path))
        item = stage(item_of("A car."))
    kept = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "A car." in kept
    assert KEY not in kept + caplog.text + json.dumps(item.to_row()["item"]) + repr(vars(stage))


@pytest.mark.parametrize(
    ("section", "variable"),
    [({"provider": "dashscope"}, "DASH_API_KEY"), ({"provider": "openai", "model": "m"}, "OPENAI_API_KEY")],
)
def test_a_missing_key_is_named(section: dict, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DASH_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=f"set {variable} in the environment"):
        make_extender(ExtendSection(**section))


def test_a_key_with_a_line_break_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASH_API_KEY", "sk-abc\nsk-def")
    with pytest.raises(ConfigError) as refused:
        make_extender(ExtendSection(provider="dashscope"))
    assert "sk-" not in str(refused.value)


def test_the_url_of_the_environment_counts_where_the_config_names_none(
    server: LlmServer, item_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASH_API_URL", server.dashscope_url + "/")
    assert ExtendStage(ExtendSection(provider="dashscope"))(item_of("A car.")).extension["model"] == "qwen-plus"
    assert server.bodies[0]["model"] == "qwen-plus"


def test_a_redirect_is_not_followed_with_the_key(server: LlmServer, section_of: Any, item_of: Any) -> None:
    server.fault = lambda *_: "302"
    with pytest.raises(RunStoppedError, match="HTTP 302"):
        ExtendStage(section_of("openai"))(item_of("A car."))


PROGRAM = """
import json, sys
from wan_ray.extend_section import ExtendSection
from wan_ray.request import RenderRequest
from wan_ray.resolved import resolve
from wan_ray.stages.extend import ExtendStage
from wan_ray.stages.items import Item
from wan_ray.storage.blob import Store
from wan_ray.storage.runs import alive
from wan_ray.variants import get_variant

section, output, run_id, first, last = json.loads(sys.argv[1])
items = []
for row in range(first, last):
    prompt = f"A red car with number {row}."
    asked = RenderRequest(id=f"row-{row}", prompt=prompt, extend_prompt=True)
    request = resolve(asked, get_variant("debug"), extends=True)
    items.append(Item(name=request.id, id=request.id, row=row, request=request, prompt=prompt))
with alive(Store(output), run_id):
    ended = ExtendStage(ExtendSection(**section), output=output, run_id=run_id).extend(items)
print(sum(item.extension["prompt_source"] == "rewrite" for item in ended))
"""


def start(section: ExtendSection, output: Path, run_id: str, rows: tuple[int, int]) -> subprocess.Popen:
    told = json.dumps([section.model_dump(), str(output), run_id, *rows])
    return subprocess.Popen([sys.executable, "-c", PROGRAM, told], stdout=subprocess.PIPE, env=os.environ, text=True)


def until(holds: Any, within_s: float = 60.0) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_after_a_kill_and_a_resume_no_prompt_is_paid_for_twice(
    server: LlmServer, section_of: Any, tmp_path: Path
) -> None:
    section, num_rows, before = section_of("dashscope", rows_at_once=8), 60, 25
    answered = threading.Semaphore(before)
    killed = threading.Event()

    def fault(text: str, times: int) -> str | None:
        if not killed.is_set() and not answered.acquire(blocking=False):
            killed.wait(60)
            return "timeout"  # whoever asked is dead: no answer
        return None

    server.fault = fault
    first = start(section, tmp_path, "run-1", (0, num_rows))
    until(lambda: len(list((tmp_path / "prompts").glob("*.json"))) == before and server.inside == 8)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert len(list((tmp_path / "claims").iterdir())) >= 8
    killed.set()
    second = start(section, tmp_path, "run-2", (0, num_rows))
    assert second.communicate(timeout=100)[0].split() == [str(num_rows)]
    assert len(server.paid) == num_rows
    assert set(server.paid.values()) == {1}
    assert list((tmp_path / "claims").iterdir()) == []


def test_two_runs_at_once_pay_once_for_a_prompt_that_both_want(
    server: LlmServer, section_of: Any, tmp_path: Path
) -> None:
    section = section_of("openai", rows_at_once=4)
    server.gate.clear()
    runs = [start(section, tmp_path, f"run-{n}", rows) for n, rows in enumerate([(0, 20), (0, 20), (10, 30)])]
    until(lambda: server.inside >= 8)
    server.gate.set()
    assert [run.communicate(timeout=100)[0].split() for run in runs] == [["20"]] * 3
    assert len(server.paid) == 30
    assert set(server.paid.values()) == {1}
