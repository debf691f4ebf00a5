"""What a run takes up again, by what is on record."""

import pytest

from wan_ray.errors import ConfigError
from wan_ray.stages.agenda import Again, attempts_due
from wan_ray.stages.planning import Plan
from wan_ray.storage.index import Indexed


def make_plan(**contents):
    """A plan of sound rows with these names and contents."""
    plan = Plan()
    for name, content in contents.items():
        plan.names.append(name)
        plan.contents.append(content)
        plan.bucket_of_row.append(0 if content is None else 1)
    return plan


KNOWN = {
    "done": Indexed(1, "ok", "c", None),
    "old": Indexed(1, "ok", None, None),
    "gang": Indexed(2, "failed", "c", "GangError"),
    "request": Indexed(1, "failed", "c", "RequestError"),
}
PLAN = {"new": "c", "done": "c", "old": "c", "gang": "c", "request": "c"}


@pytest.mark.parametrize(
    ("retry", "due"),
    [
        (None, [1, 0, 0, 0, 0]),
        ("failed", [1, 0, 0, 3, 2]),
        ("failed:GangError", [1, 0, 0, 3, 0]),
        ("failed:RequestError,GangError", [1, 0, 0, 3, 2]),
    ],
)
def test_rows_without_a_record_are_due_and_failed_ones_as_asked(retry, due):
    again = Again.from_options(retry, "refuse")
    assert list(attempts_due(make_plan(**PLAN), KNOWN, again)) == due


def test_an_error_that_no_row_failed_with_is_told_with_those_there_are():
    with pytest.raises(ConfigError, match=r"failed:GangErorr: no row failed with it; on record are .*GangError \(1\)"):
        attempts_due(make_plan(**PLAN), KNOWN, Again.from_options("failed:GangErorr", "refuse"))


@pytest.mark.parametrize("retry", ["failure", "failed:", "ok"])
def test_what_is_no_way_to_retry_is_an_error(retry):
    with pytest.raises(ConfigError, match="use failed, or failed:"):
        Again.from_options(retry, "refuse")


def test_a_row_that_changed_is_refused_by_name_or_rendered_again():
    plan = make_plan(done="other", old="other", gang="other")
    with pytest.raises(ConfigError, match="2 rows have a record and now ask for something else: 'done', 'gang';"):
        attempts_due(plan, KNOWN, Again())
    assert list(attempts_due(plan, KNOWN, Again(changed=True))) == [2, 0, 3]


def test_refused_rows_are_recorded_once():
    plan = make_plan(refused=None, done=None)
    assert list(attempts_due(plan, KNOWN, Again(failed=True))) == [1, 0]
