"""What Ray Serve runs of the path: replicas of the stages, each around the same stage class as a batch run's worker."""

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.util.placement_group import get_current_placement_group

from wan_ray.config import ModelSection, RenderConfig, StagesSection, VideoSection
from wan_ray.errors import ClipStoppedError, GangError, RunStoppedError, StageError, StorageError
from wan_ray.extend_section import ExtendSection
from wan_ray.graph.gang import Beat, Gang, raised_in
from wan_ray.graph.operator import Stage, extended, stage_loader, without_tensors
from wan_ray.graph.placement import gang_of, rank_resources
from wan_ray.graph.rank import Rank
from wan_ray.graph.shelf import Shelf
from wan_ray.serving.jobs import JobStore
from wan_ray.serving.keys import Keys
from wan_ray.serving.queue import JobQueue, Lane
from wan_ray.serving.webhooks import Webhooks
from wan_ray.stages.extend import ExtendStage
from wan_ray.stages.items import Item, Row
from wan_ray.stages.publish import PublishStage
from wan_ray.storage.blob import Store
from wan_ray.storage.paths import progress_key
from wan_ray.storage.records import Record

logger = logging.getLogger(__name__)

QUEUE = "queue"
_TELL_S = 0.5

# Ray types a deployment's handle without the deployment's methods: hence Any.
Handle = Any


class _Alone:
    """A replica, which tells nobody: the queue knows what is where."""

    def __init__(self, stage: str) -> None:
        self.stage = stage

    def begin(self, item: Item) -> None:
        """Nothing."""

    def end(self, item: Item, seconds: float) -> None:
        """Nothing."""


class Extend:
    """The replica that has prompts rewritten; one where it asks a service, so that its limits hold."""

    def __init__(self, section: ExtendSection, output: str, run_id: str) -> None:
        self._extend = ExtendStage(section, output=output, run_id=run_id)
        self._one = asyncio.Lock()

    async def run(self, row: Row) -> Row:
        """The row with its prompt rewritten if it asks for that, or one that failed."""
        item = without_tensors(row)
        if item.failure is not None or not item.sound.extend_prompt:
            return row
        async with self._one:
            return await asyncio.to_thread(self._extended, item)

    def _extended(self, item: Item) -> Row:
        started = time.perf_counter()
        try:
            (ended,) = extended(self._extend.extend, [item])
        except RunStoppedError as error:  # of a batch run; here others' jobs go on
            ended = item.failed("extend", error)
        return replace(ended, seconds={**ended.seconds, "extend": time.perf_counter() - started}).to_row()


class Encode:
    """The text encoder's replica."""

    def __init__(self, model: ModelSection, video: VideoSection) -> None:
        encode = stage_loader(model, video).encode()
        self._stage = Stage(lambda row: encode(Item.from_row(row)).to_row(), _Alone("encode"))
        self._one = asyncio.Lock()

    async def run(self, row: Row) -> Row:
        """The encoded row, or one that failed."""
        async with self._one:
            return await asyncio.to_thread(self._stage, row)


@dataclass(kw_only=True)
class _Clip:
    """What a gang works on. why: it is to stop."""

    id: str
    token: str
    beat: Beat
    why: str | None = None


class Denoise:
    """Leads one gang, in the placement group that Serve made for this replica and takes away with it."""

    def __init__(self, model: ModelSection, stages: StagesSection, output: str) -> None:
        section = gang_of(model)
        model = model.model_copy(update={"gang": section})
        self._max_tries = section.max_tries
        self._gang = Gang(
            Rank,
            {"model": model, "gang": section},
            name="",
            degrees=section.degrees,
            resources=rank_resources(stages.denoise),
            timeout_s=section.timeout_s,
            leaner={"model": model.leaner or model},
            group=get_current_placement_group(),
        )
        self._shelf = Shelf(output)
        self._queue: Handle = serve.get_deployment_handle(QUEUE, app_name=serve.get_replica_context().app_name)
        self._one = threading.Lock()
        self._gang.build(_nothing)
        self._ready()

    async def run(self, row: Row, token: str) -> Row:
        """The denoised row, or one that failed. ClipStoppedError when the queue says so, with what there is saved."""
        item = without_tensors(row)
        if item.failure is not None:
            return row
        beat = Beat(step=0, num_steps=item.sound.num_inference_steps)
        clip = _Clip(id=item.id, token=token, beat=beat)
        await self._tell(clip)
        if clip.why is not None:
            raise ClipStoppedError(clip.why)
        telling = asyncio.create_task(self._keep_telling(clip))
        try:
            return await asyncio.to_thread(self._run, row, item, clip)
        finally:
            telling.cancel()
            clip.why = "nobody waits for it"  # where this call was cancelled, its thread still runs

    async def check_health(self) -> None:
        """Build a gang anew that lost a rank while idle. GangError when none can be started, so that Serve acts."""
        await asyncio.to_thread(self._look)

    def _run(self, row: Row, item: Item, clip: _Clip) -> Row:
        with self._one:
            return Stage(partial(self._denoised, item=item, clip=clip), _Alone("denoise"))(row)

    def _denoised(self, row: Row, *, item: Item, clip: _Clip) -> Row:
        saved = self._shelf.find(item)
        given, resume = ray.put(row), None if saved is None else ray.put(saved)
        watch, tries = _Watch(self._gang, self._shelf, clip), 0
        while True:
            try:
                return self._gang.run(given, resume, watch=watch)
            except ClipStoppedError:
                self._shelf.put(self._gang.saved())
                self._shelf.flush()
                raise
            except GangError as error:
                tries += 1
                self._build_anew(error)
                if tries == self._max_tries:
                    raise GangError(f"killed its gang {tries} times: {error}") from None
            if self._shelf.latest is not None:
                resume = ray.put(self._shelf.latest)

    def _look(self) -> None:
        if self._one.acquire(blocking=False):
            try:
                self._gang.ready()
            except GangError as error:
                self._build_anew(error)
            finally:
                self._one.release()

    def _build_anew(self, why: GangError) -> None:
        logger.warning("building the gang anew: reason=%s", why)
        self._gang.build(_nothing)
        self._ready()

    def _ready(self) -> None:
        """Return when the gang is ready, after max_tries starts at most; GangError, ConfigError when it never is."""
        for tries_left in reversed(range(self._max_tries)):
            try:
                return self._gang.ready()
            except GangError as error:
                logger.warning("building the gang anew: reason=%s", error)
                if not tries_left:
                    raise
                self._gang.build(_nothing)
        return None

    async def _tell(self, clip: _Clip) -> None:
        """Tell the queue how far the clip is, and learn whether it is to stop."""
        try:
            clip.why = await self._queue.beat.remote(clip.id, clip.token, clip.beat.step, clip.beat.num_steps)
        except (RayError, RayServeException) as error:
            logger.warning("the queue is being replaced: %s", error)

    async def _keep_telling(self, clip: _Clip) -> None:
        while clip.why is None:
            await asyncio.sleep(_TELL_S)
            await self._tell(clip)


class _Watch:
    """Called about once a second while a clip is denoised: keeps what was saved, and stops the gang if asked."""

    def __init__(self, gang: Gang, shelf: Shelf, clip: _Clip) -> None:
        self._gang = gang
        self._shelf = shelf
        self._clip = clip
        self._saves = 0

    def __call__(self, beats: Mapping[int, Beat]) -> None:
        first = beats.get(0)
        if first is None:
            return
        if first.saves > self._saves:
            self._shelf.put(self._gang.saved())
        self._saves = first.saves
        self._clip.beat = first
        why = self._clip.why or next((beat.notice for beat in beats.values() if beat.notice), None)
        if why is not None:
            self._gang.stop(why)


class Decode:
    """The VAE's replica, which also commits."""

    def __init__(self, model: ModelSection, video: VideoSection, output: str, run_id: str) -> None:
        decode = stage_loader(model, video).decode()
        self._stage = Stage(lambda row: decode(Item.from_row(row)).to_row(), _Alone("decode"))
        self._publish = PublishStage(output, run_id=run_id)
        self._one = asyncio.Lock()

    async def run(self, row: Row) -> str:
        """The job's record, as JSON: of this clip, or the one that it had. StorageError when the store failed."""
        async with self._one:
            return (await asyncio.to_thread(self._committed, row)).model_dump_json()

    def _committed(self, row: Row) -> Record:
        records, name = self._publish.records, without_tensors(row).name
        if records.has(name, 1):  # it was cancelled
            return records.read(name)
        record = self._publish(Item.from_row(self._stage(row)))
        self._publish.store.delete(progress_key(name))
        return record


class Queue:
    """The one queue, in a process of its own; its methods are a Backend's, and beat()."""

    def __init__(
        self,
        config: RenderConfig,
        lanes: Mapping[str, tuple[int, Handle, Handle, Handle, Handle]],
        run_id: str,
        keys: Keys,
    ) -> None:
        webhooks = Webhooks(keys, allowed_hosts=config.serve.allowed_media_hosts)
        self._started: asyncio.Task[None] | None = None
        self._queue = JobQueue(
            JobStore(Store(config.output or "")),
            config,
            {name: Lane(slots=slots, run=partial(_rendered, stages)) for name, (slots, *stages) in lanes.items()},
            run_id=run_id,
            tell=webhooks.deliver,
        )

    async def call(self, method: str, *arguments: Any) -> Any:
        """A Backend's method of this name."""
        if self._started is None:
            self._started = asyncio.get_running_loop().create_task(self._queue.start())
        await asyncio.shield(self._started)
        return await getattr(self._queue, method)(*arguments)

    async def beat(self, job_id: str, token: str, step: int, num_steps: int) -> str | None:
        """What JobQueue.beat says."""
        return self._queue.beat(job_id, token, step, num_steps)

    async def check_health(self) -> None:
        """Begin: a queue that nobody asks has pending jobs all the same."""
        await self.call("view")


async def _rendered(stages: Sequence[Handle], row: Row, token: str) -> Record:
    """One row on its way through the replicas. Serve hands an answer to the next without bringing it here."""
    extend, encode, denoise, decode = stages
    try:
        encoded = encode.run.remote(row if extend is None else extend.run.remote(row))
        return Record.model_validate_json(await decode.run.remote(denoise.run.remote(encoded, token)))
    except (RayError, RayServeException) as error:
        cause = raised_in(error)
        if isinstance(cause, ClipStoppedError | StageError | StorageError):
            raise cause from None
        raise StageError(f"a worker was lost: {error}") from error


def _nothing() -> None:
    """While a gang waits for its place: Serve gives it one before this replica starts."""
