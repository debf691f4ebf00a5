"""Run by test_nodes.py in a process of its own: a render on a cluster whose nodes come and go.

One node has a GPU (in name only) when the run starts; a second comes, the first is drained and then goes.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import ray
from observers import Nobody
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from wan_ray.config import RenderConfig
from wan_ray.graph.board import Snapshot
from wan_ray.graph.run import render
from wan_ray.stages.planning import plan_manifest

_MEMORY = 80_000_000
_PREEMPTION = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")


class Weather(Nobody):
    """Adds the second node once the first gang works, drains the first once both do, and takes it once it is left."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.told: dict[str, object] = {}
        self.latest = Snapshot(events=[], inside={}, gangs=[])
        self.first = cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=_MEMORY)
        self.first_gang: str | None = None

    def tick(self, snapshot: Snapshot) -> None:
        self.latest = snapshot
        for gang in snapshot.gangs:
            if "left" in self.told and gang.id == self.told["drained_id"] and gang.step:
                self.told.setdefault("resumed_at", gang.step)

    def change(self) -> None:
        """What is next, in the main thread: Ray starts nodes nowhere else."""
        gangs = {gang.worker: gang for gang in self.latest.gangs}
        working = {worker: gang for worker, gang in gangs.items() if gang.step > 2}
        if self.first_gang is None and working:
            (self.first_gang,) = working
            self.told["alone"] = sum(bool(gang.ranks) for gang in gangs.values())
            self.cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=_MEMORY)
        elif "drained_at" not in self.told and len(working) == 2 and working[self.first_gang].step < 400:
            gang = working[self.first_gang]
            self.told |= {"together": len(working), "drained_at": gang.step, "drained_id": gang.id}
            client = GcsClient(address=self.cluster.gcs_address)
            client.drain_node(self.first.node_id, _PREEMPTION, "spot", int((time.time() + 60) * 1000))
        elif "left" not in self.told and "drained_at" in self.told and not gangs[self.first_gang].ranks:
            self.told["left"] = True
            self.cluster.remove_node(self.first)


def main(config_file: str, told_file: str) -> None:
    """Render, and write what was seen."""
    config = RenderConfig.model_validate_json(Path(config_file).read_text())
    head = {"num_cpus": 3, "include_dashboard": False, "object_store_memory": _MEMORY}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    weather = Weather(cluster)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        with ThreadPoolExecutor(1) as pool:
            rendering = pool.submit(render, config, plan_manifest(config), observer=weather)
            while not rendering.done():
                weather.change()
                time.sleep(0.2)
        Path(told_file).write_text(json.dumps(weather.told | {"ok": rendering.result().ok}))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
