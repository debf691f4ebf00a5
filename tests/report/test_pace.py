import numpy as np
import pytest

from wan_ray.report.pace import pace, run_pace, timeline
from wan_ray.report.rows import RECORD


def table(times, *, ok=True, refused=False, seconds=(0.0, 0.0, 8.0, 2.0, 0.0), gpu_seconds=np.nan):
    rows = np.zeros(len(times), RECORD)
    rows["time_s"], rows["ok"], rows["refused"] = times, ok, refused
    rows["seconds"], rows["gpu_seconds"] = seconds, gpu_seconds
    return rows


def joined(*tables):
    rows = np.concatenate(tables)
    return rows[np.argsort(rows["time_s"], kind="stable")]


def test_means_are_over_clips_and_a_refused_row_is_no_work():
    rows = joined(
        table([1, 2], gpu_seconds=[30.0, np.nan]),
        table([3], ok=False, seconds=(0, 0, 50, 0, 0)),
        table([4], ok=False, refused=True),
    )
    of = pace(rows, 1800.0)
    assert (of.rows, of.clips, of.clips_per_hour) == (3, 2, 4.0)
    assert (of.seconds_per_clip, of.gpu_seconds_per_clip) == (10.0, 30.0)


def test_where_no_worker_holds_a_gpu_there_are_no_gpu_seconds():
    assert pace(table([1, 2], gpu_seconds=0.0), 10.0).gpu_seconds_per_clip is None


def test_the_last_ten_minutes_are_told_apart_from_the_whole_run():
    # An hour with a clip every 10 s, then an hour with one every 20 s: 540 clips in 2 h, lately 180 an hour.
    rows = table([*range(10, 3601, 10), *range(3620, 7201, 20)])
    found = run_pace(rows, started_s=0.0, num_pending=720)
    assert found.whole.clips_per_hour == 270
    assert (found.recent.over_s, found.recent.clips_per_hour) == (600, 180)
    assert found.end_s == 7200 + (720 - 540) * 20


def test_lately_is_ten_clips_time_where_clips_are_long():
    rows = table(range(600, 40 * 600 + 1, 600), seconds=(0, 0, 590, 10, 0))
    assert run_pace(rows, started_s=0.0, num_pending=None).recent.over_s == 6000


def test_a_short_run_is_judged_whole_and_records_of_earlier_runs_are_not_its_own():
    rows = table([*range(100), *range(1000, 1100)])
    found = run_pace(rows, started_s=999.0, num_pending=150)
    assert found.recent is None
    assert (found.whole.clips, found.whole.over_s, found.last_s) == (100, 100, 1099)
    assert found.end_s == 1099 + 50


def test_refused_rows_are_done_but_do_not_make_a_run_fast():
    rows = joined(table([1] * 50, ok=False, refused=True), table(range(10, 101, 10)))
    found = run_pace(rows, started_s=0.0, num_pending=100)
    assert found.end_s == 100 + 40 * 10


def test_an_hour_of_loading_weights_makes_the_rest_no_longer():
    found = run_pace(table(range(3600, 3700, 10)), started_s=0.0, num_pending=20)
    assert found.whole.clips_per_hour == pytest.approx(10 * 3600 / 3690)
    assert (found.recent.clips_per_hour, found.end_s) == (360, 3690 + 10 * 10)
    assert run_pace(table([3600]), started_s=0.0, num_pending=3).end_s == 3600 + 2 * 3600


def test_before_its_first_record_a_run_has_no_pace():
    assert run_pace(table([1, 2, 3]), started_s=4.0, num_pending=9) is None
    assert run_pace(table([]), started_s=0.0, num_pending=9) is None


@pytest.mark.parametrize(("span", "step"), [(3, 1), (100, 2), (3000, 60), (7 * 86400, 10800)])
def test_time_is_divided_into_round_steps_that_lose_no_row(span, step):
    rows = joined(table(np.linspace(1e9 + 7, 1e9 + 7 + span, 1001)), table([1e9 + 8] * 5, ok=False))
    steps = timeline(rows, max_steps=72)
    assert steps.step_s == step
    assert steps.start_s % step == 0
    assert len(steps.clips) <= 72
    assert (steps.clips.sum(), steps.failures.sum()) == (1001, 5)
    assert np.nanmax(steps.seconds_per_clip) == 10


def test_a_step_without_a_clip_has_no_mean():
    steps = timeline(joined(table([0, 3]), table([1], ok=False)), max_steps=72)
    np.testing.assert_array_equal(steps.seconds_per_clip, [10, np.nan, np.nan, 10])


def test_years_fit_too():
    assert len(timeline(table([0, 10 * 365 * 86400]), max_steps=72).clips) <= 72
