"""RunMetrics: what a run tells Prometheus, through Ray's own metrics port, from what the driver sees of it.

Ray writes `ray_` before the names.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from ray.util import metrics

from wan_ray.config import RenderConfig
from wan_ray.costs.bucket import Bucket
from wan_ray.costs.flops import denoise_flops
from wan_ray.costs.hardware import GPUS
from wan_ray.graph.board import Event, Snapshot
from wan_ray.graph.observer import Observer
from wan_ray.resolved import guided_steps
from wan_ray.storage.records import Record
from wan_ray.variants import get_variant

_SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0]
_TERA = 1e12
_NEXT = {"encode": "denoise", "denoise": "decode", "decode": "publish"}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One series, or one per combination of labels."""

    kind: str
    about: str
    labels: tuple[str, ...] = ()


METRICS = {
    "wan_ray_rows_total": Metric(
        kind="counter", about="Rows that got their record; error is its type.", labels=("outcome", "error")
    ),
    "wan_ray_rows_left": Metric(kind="gauge", about="Rows of this run without a record."),
    "wan_ray_stage_seconds": Metric(kind="histogram", about="From taking a row to being done.", labels=("stage",)),
    "wan_ray_stage_in_flight": Metric(kind="gauge", about="Rows being worked on.", labels=("stage",)),
    "wan_ray_stage_waiting": Metric(kind="gauge", about="Rows that wait for the stage.", labels=("stage",)),
    "wan_ray_gpu_seconds_total": Metric(
        kind="counter",
        about="GPUs reserved times seconds at work, of rows that a stage was done with.",
        labels=("stage",),
    ),
    "wan_ray_rank_seconds_total": Metric(kind="counter", about="Ranks times seconds of denoising."),
    "wan_ray_denoise_tflop_total": Metric(
        kind="counter",
        about="Floating-point operations of finished clips' denoising, in units of 10^12; steps that a cache took over "
        "count in full.",
    ),
    "wan_ray_gpu_peak_tflops": Metric(
        kind="gauge", about="The best rate of one GPU of the config's hardware, per second."
    ),
    "wan_ray_gangs_up": Metric(kind="gauge", about="Gangs whose ranks are there."),
    "wan_ray_gang_rebuilds_total": Metric(kind="counter", about="Gangs built anew after they were lost or moved."),
    "wan_ray_worker_deaths_total": Metric(
        kind="counter", about="Workers that died inside of a row.", labels=("stage",)
    ),
}


class RunMetrics:
    """An observer of one run that lets another see it too. Ray keeps what is set here until the driver ends."""

    def __init__(self, config: RenderConfig, other: Observer) -> None:
        self._config = config
        self._other = other
        self._of_ray: dict[str, Any] = {name: _for_ray(name, metric) for name, metric in METRICS.items()}
        self._left = self._unread = 0
        self._waiting: dict[str, set[str]] = {stage: set() for stage in _NEXT.values()}
        self._epochs: Counter[str] = Counter()
        if config.hardware is not None:
            self._set("wan_ray_gpu_peak_tflops", GPUS[config.hardware.gpu].matmul / _TERA)

    def begin(self, *, num_rows: int, num_done: int) -> None:
        """The run has so many rows to render; num_done others have records."""
        self._other.begin(num_rows=num_rows, num_done=num_done)
        self._left = self._unread = num_rows
        self._set("wan_ray_rows_left", num_rows)

    def tick(self, snapshot: Snapshot) -> None:
        """Take what has happened since the last snapshot."""
        self._other.tick(snapshot)
        ranks = {gang.worker: max(1, len(gang.ranks)) for gang in snapshot.gangs}
        for event in snapshot.events:
            self._note(event, num_ranks=ranks.get(event.worker, 1))
        for stage, inside in snapshot.inside.items():
            self._set("wan_ray_stage_in_flight", inside, stage=stage)
        self._set("wan_ray_stage_waiting", max(0, self._unread), stage="encode")
        for stage, waiting in self._waiting.items():
            self._set("wan_ray_stage_waiting", len(waiting), stage=stage)
        self._set("wan_ray_gangs_up", sum(bool(gang.ranks) for gang in snapshot.gangs))
        for gang in snapshot.gangs:
            # The first build is none anew.
            anew = gang.epoch - max(1, self._epochs[gang.worker])
            self._epochs[gang.worker] = max(gang.epoch, self._epochs[gang.worker])
            self._add("wan_ray_gang_rebuilds_total", anew)

    def ended(self, record: Record) -> None:
        """A row has its record."""
        self._other.ended(record)
        self._left -= 1
        self._set("wan_ray_rows_left", self._left)
        self._add("wan_ray_rows_total", 1, outcome=record.status, error=record.error_type or "")
        if record.error_stage in ("read", "extend"):
            self._unread -= 1
        if record.status == "ok":
            self._add("wan_ray_denoise_tflop_total", denoise_tflop(record))

    def waiting(self, num_rows: int) -> None:
        """Another run works on the last rows."""
        self._other.waiting(num_rows)

    def _note(self, event: Event, *, num_ranks: int) -> None:
        stage = event.stage
        if event.died:
            self._add("wan_ray_worker_deaths_total", 1, stage=stage)
            self._move(event, back=True)
        elif event.seconds is None:
            self._move(event, back=False)
        else:
            following = "publish" if event.error else _NEXT.get(stage)
            if following is not None:
                self._waiting[following].add(event.id)
            self._of_ray["wan_ray_stage_seconds"].observe(event.seconds, {"stage": stage})
            gpus = getattr(self._config.stages, stage).num_gpus
            rank_seconds = event.seconds * (num_ranks if stage == "denoise" else 1)
            self._add("wan_ray_gpu_seconds_total", gpus * rank_seconds, stage=stage)
            if stage == "denoise":
                self._add("wan_ray_rank_seconds_total", rank_seconds)

    def _move(self, event: Event, *, back: bool) -> None:
        """Out of what waits for the event's stage, or back into it; what waits to be extended is not encoded yet."""
        if event.stage == "extend":
            return
        if event.stage == "encode":
            self._unread += 1 if back else -1
        elif back:
            self._waiting[event.stage].add(event.id)
        else:
            self._waiting[event.stage].discard(event.id)

    def _add(self, name: str, amount: float, **labels: str) -> None:
        if amount > 0:
            self._of_ray[name].inc(amount, labels)

    def _set(self, name: str, value: float, **labels: str) -> None:
        self._of_ray[name].set(value, labels)


def denoise_tflop(record: Record) -> float:
    """Of a rendered clip, in 10^12 operations; 0 for a model of unknown sizes, as debug ones are."""
    assert record.variant and record.task and record.width and record.height
    assert record.num_frames and record.num_inference_steps and record.guidance_scale is not None
    architecture = get_variant(record.variant).architecture
    if architecture is None:
        return 0.0
    references = record.inputs.get("reference_images")
    guided = guided_steps(record.num_inference_steps, record.guidance_scale, record.guidance_interval)
    bucket = Bucket(
        variant=record.variant,
        task=record.task,
        width=record.width,
        height=record.height,
        num_frames=record.num_frames,
        num_inference_steps=record.num_inference_steps,
        num_unguided_steps=record.num_inference_steps - len(guided),
        num_references=len(references) if isinstance(references, list) else 0,
    )
    return denoise_flops(architecture, bucket) / _TERA


def _for_ray(name: str, metric: Metric) -> Any:
    if metric.kind == "histogram":
        return metrics.Histogram(name, metric.about, boundaries=_SECONDS, tag_keys=metric.labels)
    of_kind = {"counter": metrics.Counter, "gauge": metrics.Gauge}[metric.kind]
    return of_kind(name, metric.about, tag_keys=metric.labels)
