"""`wan-ray extend`: a manifest with longer prompts, and what plan and render make of a config that extends."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from asking import server
from llm_server import LlmServer

from wan_ray.cli import INVALID, OK, SOME_FAILED, STOPPED, main

__all__ = ["server"]
ROWS = {
    "id": ["fog", "plain", "again", "done", "long"],
    "prompt": ["A road in fog", "一辆红色的车", "A road in fog", "Leave me", "A road " * 1000],
    "extend_prompt": [None, True, None, False, None],
    "labels": [[("weather", "fog")], [], [("weather", "fog")], None, None],
    "scene": [1, 2, 3, 4, 5],
}


@pytest.fixture
def extended(server: LlmServer, tmp_path: Path, capsys: Any) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """extended("-o", "out.parquet", **settings): exit code, output and errors of the command."""
    schema = pa.schema({"labels": pa.map_(pa.string(), pa.string())})
    columns = {
        name: pa.array(values, schema.field(name).type if name == "labels" else None) for name, values in ROWS.items()
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")

    def extend(*arguments: str, **settings: object) -> tuple[int, str, str]:
        section = {"provider": "dashscope", "base_url": server.dashscope_url, **settings}
        config = {"model": {"variant": "debug", "checkpoint": "none"}, "extend": section}
        (tmp_path / "config.yaml").write_text(json.dumps(config))
        code = main(["extend", str(tmp_path / "rows.parquet"), "--config", str(tmp_path / "config.yaml"), *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    yield extend


def test_a_manifest_is_extended_once_and_every_other_column_stays(
    extended: Any, server: LlmServer, tmp_path: Path
) -> None:
    out = str(tmp_path / "long.parquet")
    code, said, _ = extended("-o", out)
    assert code == SOME_FAILED  # one row is too long to render
    rows = {row["id"]: row for row in pq.read_table(out).to_pylist()}
    assert list(rows) == ROWS["id"]
    assert rows["plain"]["prompt"] == "A long shot. 一辆红色的车 It moves on, slowly and steadily."
    assert rows["fog"]["prompt_original"] == "A road in fog"
    assert rows["fog"]["extend_prompt"] is False
    assert rows["fog"]["labels"] == [("weather", "fog")]
    assert json.loads(rows["fog"]["extension"])["prompt_source"] == "rewrite"
    assert (rows["done"]["prompt"], rows["done"]["extension"]) == ("Leave me", None)
    assert rows["long"]["prompt"] == ROWS["prompt"][4]
    assert [row["scene"] for row in rows.values()] == ROWS["scene"]
    assert sum(server.asked.values()) == 2
    for line in (
        "fog  (rewrite)",
        "  before  A road in fog",
        "long  (invalid)",
        "5 rows: 1 invalid, 1 left alone, 3 rewrite",
    ):
        assert line in said
    assert extended("-o", out)[0] == SOME_FAILED
    assert sum(server.asked.values()) == 2
    extended_twice = main(["extend", out, "-o", out + "2", "--config", str(tmp_path / "config.yaml")])
    assert extended_twice == INVALID


def test_the_extended_manifest_can_be_planned_without_an_extender(extended: Any, tmp_path: Path, capsys: Any) -> None:
    out = str(tmp_path / "long.parquet")
    extended("-o", out)
    config = tmp_path / "plain.yaml"
    config.write_text(json.dumps({"model": {"variant": "debug", "checkpoint": "none"}, "manifest": out}))
    main(["plan", str(config)])
    assert "5 rows for debug: 1 invalid" in capsys.readouterr().out


def test_rows_that_failed_are_left_to_be_extended(extended: Any, server: LlmServer, tmp_path: Path) -> None:
    server.fault = lambda text, times: "400" if "一辆" in text else None
    out = str(tmp_path / "long.parquet")
    code, said, _ = extended("-o", out, on_failure="fail_row")
    assert code == SOME_FAILED
    assert "plain  (failed)" in said
    row = pq.read_table(out).to_pylist()[1]
    assert (row["prompt"], row["extend_prompt"]) == ("一辆红色的车", True)


def test_a_run_that_is_stopped_writes_nothing_and_pays_for_nothing_again(
    extended: Any, server: LlmServer, tmp_path: Path
) -> None:
    server.fault = lambda text, times: "400" if "一辆" in text else None
    code, _, errors = extended("-o", str(tmp_path / "long.parquet"), on_failure="stop")
    assert code == STOPPED
    assert "row 'plain': dashscope: HTTP 400" in errors
    assert not (tmp_path / "long.parquet").exists()
    server.fault = lambda *_: None
    assert extended("-o", str(tmp_path / "long.parquet"))[0] == SOME_FAILED
    assert set(server.paid.values()) == {1}


@pytest.mark.parametrize("command", ["plan", "render", "extend"])
def test_a_missing_key_is_named_before_anything_starts(
    command: str, extended: Any, server: LlmServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.delenv("DASH_API_KEY")
    if command == "extend":
        code, _, errors = extended("-o", str(tmp_path / "long.parquet"))
    else:
        rows = {"prompt": ["A car"], "extend_prompt": [True]}
        pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
        config = {"model": {"variant": "debug", "checkpoint": "none"}, "extend": {"provider": "dashscope"}}
        (tmp_path / "config.yaml").write_text(json.dumps(config))
        where = ["--manifest", str(tmp_path / "rows.parquet"), "--output", str(tmp_path / "out")]
        code, errors = main([command, str(tmp_path / "config.yaml"), *where]), capsys.readouterr().err
    assert code == INVALID
    assert "set DASH_API_KEY in the environment" in errors
    assert not server.arrivals


def test_rows_that_ask_for_nothing_need_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DASH_API_KEY", raising=False)
    pq.write_table(pa.table({"prompt": ["A car"]}), tmp_path / "rows.parquet")
    config = {"model": {"variant": "debug", "checkpoint": "none"}, "extend": {"provider": "dashscope"}}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    assert main(["plan", str(tmp_path / "config.yaml"), "--manifest", str(tmp_path / "rows.parquet")]) == OK


def test_a_config_without_an_extender_is_told_what_it_lacks(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "config.yaml").write_text(json.dumps({"model": {"variant": "debug", "checkpoint": "none"}}))
    assert main(["extend", "a.parquet", "-o", "b.parquet", "--config", str(tmp_path / "config.yaml")]) == INVALID
    assert "no section `extend`" in capsys.readouterr().err
