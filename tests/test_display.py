"""What someone who runs the command reads."""

import io

import pytest

from wan_ray.display import Display
from wan_ray.graph.board import Event, GangState, Snapshot


@pytest.fixture
def tell(monkeypatch):
    """tell(snapshot fields): what a display on a terminal has written once it was told."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "200")
    stream = Terminal()
    display = Display(stream)
    display.begin(num_rows=3, num_done=0)

    def written(*, events: tuple[Event, ...] = (), inside: dict | None = None, gangs: tuple[GangState, ...] = ()):
        display.tick(Snapshot(events=list(events), inside=inside or {}, gangs=list(gangs)))
        return stream.getvalue()

    return written


def test_the_step_of_each_clip_is_shown(tell):
    gangs = (
        GangState(worker="a", epoch=1, ranks=("h:1",), id="car", step=12, num_steps=50),
        GangState(worker="b", epoch=1, ranks=("h:2",)),
        GangState(worker="c", epoch=1, ranks=("h:3",), id="road", step=1, num_steps=50),
    )
    assert "steps: car 12/50, road 1/50" in tell(inside={"denoise": 2}, gangs=gangs)


def test_gangs_without_a_place_are_counted(tell):
    assert "loading weights, 0 s  gangs that start or wait for room: 1" in tell(gangs=(GangState(worker="a", epoch=0),))


def test_a_gang_that_was_lost_is_told_once_when_it_is_back(tell):
    lost = GangState(worker="a", epoch=2, why="rank 1 died")
    assert "anew" not in tell(gangs=(GangState(worker="a", epoch=1, ranks=("h:1",)), lost))
    back = GangState(worker="a", epoch=2, why="rank 1 died", ranks=("h:4", "h:5"))
    assert "gang built anew times=1 ranks=h:4,h:5 reason=rank 1 died\n" in tell(gangs=(back,))
    assert tell(gangs=(back,)).count("anew") == 1


def test_what_became_of_items_is_told(tell):
    said = tell(
        events=(
            Event(stage="decode", id="a", worker="w"),
            Event(stage="decode", id="b", worker="w", died=True),
            Event(stage="encode", id="c", worker="w", seconds=1.0, error="no such image"),
            Event(stage="denoise", id="d", worker="w", seconds=2.5),
        )
    )
    assert "id=a" not in said
    assert "lost the worker that had to decode id=b\n" in said
    assert "failed to encode id=c error=no such image\n" in said
    assert "denoised id=d seconds=2.50\n" in said


def test_whom_a_run_waits_for_is_told():
    stream = io.StringIO()
    Display(stream).waiting(2)
    assert "waiting for another run over this output, which works on the last 2 rows" in stream.getvalue()
