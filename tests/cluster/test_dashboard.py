"""The Grafana dashboard asks for series that a run reports, by labels that they have."""

import json
import re
from pathlib import Path

from wan_ray.graph.metrics import METRICS

DASHBOARD = json.loads((Path(__file__).parents[2] / "cluster" / "grafana" / "wan_ray.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
# What Prometheus makes of a histogram.
PARTS = {"histogram": ("_bucket", "_sum", "_count")}
SERIES = {f"ray_{name}{part}": metric for name, metric in METRICS.items() for part in PARTS.get(metric.kind, ("",))}


def test_every_query_names_series_that_there_are_and_every_metric_is_shown() -> None:
    asked = [set(re.findall(r"\bray_\w+", query)) for query in QUERIES]
    assert all(asked)
    assert set().union(*asked) <= set(SERIES)
    shown = {name for name in METRICS if any(re.search(rf"\bray_{name}(_bucket)?\b", query) for query in QUERIES)}
    assert shown == set(METRICS)


def test_queries_group_and_select_by_labels_that_the_series_have() -> None:
    for query in QUERIES:
        labels = {label for name in re.findall(r"\bray_\w+", query) for label in SERIES[name].labels}
        grouped = {label.strip() for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(",")}
        selected = set(re.findall(r"(\w+)!?=~?\"", query))
        assert grouped | selected <= labels | {"le"}, query
        assert query.count("(") == query.count(")")


def test_only_counters_are_asked_for_their_rate() -> None:
    for query in QUERIES:
        for name in re.findall(r"(?:rate|increase)\((ray_\w+)", query):
            assert SERIES[name].kind in ("counter", "histogram"), query


def test_panels_stand_in_a_grid_and_take_the_data_source_that_is_chosen() -> None:
    places = [tuple(panel["gridPos"][side] for side in "xywh") for panel in DASHBOARD["panels"]]
    assert all(x + w <= 24 for x, _, w, _ in places)
    assert len({(x, y) for x, y, _, _ in places}) == len(places)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)
    (variable,) = DASHBOARD["templating"]["list"]
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {f"${{{variable['name']}}}"}
