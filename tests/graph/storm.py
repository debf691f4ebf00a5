"""A run on a cluster of two nodes and a bucket, all of which fail again and again; then, whether all came out right.

    python tests/graph/storm.py --rows 200 --times 20 --seed 1

kills, at moments drawn from the seed, so many times each: the driver (and gives the same command again), a denoise
rank, a decode worker and the raylet of the second node, while a share of the bucket's answers are errors or none.
"""

import argparse
import hashlib
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import fsspec.config
import pyarrow as pa
import pyarrow.parquet as pq
import s3fs
from flaky_s3 import flaky_s3

OUTPUT = "s3://bucket/out"
KINDS = {"rank": "ray::Rank", "decode": "ray::MapWorker(Map(Decode))"}
_MEMORY = 80_000_000
_DENOISED = re.compile(r"denoised id=(\S+)")


class Storm:
    """The cluster, the driver on it, and what was done to them."""

    def __init__(self, folder: Path, num_rows: int) -> None:
        from ray.cluster_utils import Cluster

        self.folder = folder
        self.num_rows = num_rows
        self.config = _prepared(folder, num_rows)
        head = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": _MEMORY}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.second: Any = None
        self.driver: subprocess.Popen[bytes] | None = None
        self.logs: list[Path] = []
        self.exposed: Counter[str] = Counter()
        self.done: Counter[str] = Counter()

    def steady(self) -> None:
        """See to it that there are two nodes and a driver; RuntimeError when the driver gave up."""
        if self.second is None:
            self.second = self.cluster.add_node(num_cpus=2, object_store_memory=_MEMORY)
        if self.driver is None:
            log = self.folder / f"driver-{len(self.logs):03d}.log"
            self.logs.append(log)
            command = [sys.executable, "-m", "wan_ray.cli", "render", str(self.config)]
            with log.open("w") as file:
                self.driver = subprocess.Popen(
                    [*command, f"ray_address={self.cluster.address}"], stderr=file, stdout=file, start_new_session=True
                )

    def has_ended(self) -> bool:
        """Whether the driver has come to the manifest's end; rows that failed are faults()'s to tell."""
        assert self.driver is not None
        code = self.driver.poll()
        if code not in (None, 0, 3):
            raise RuntimeError(f"the driver gave up with exit code {code}:\n{self.logs[-1].read_text()[-3000:]}")
        return code is not None

    def strike(self, kind: str) -> bool:
        """Kill one of this kind, if there is one."""
        if kind == "driver":
            assert self.driver is not None
            self._expose()
            os.killpg(self.driver.pid, signal.SIGKILL)
            self.driver.wait()
            self.driver = None
        elif kind == "node":
            self._expose()
            self.cluster.remove_node(self.second, allow_graceful=False)
            self.second = None
        else:
            victims = self._workers(KINDS[kind])
            if not victims:
                return False
            os.kill(random.choice(victims), signal.SIGKILL)
        self.done[kind] += 1
        return True

    def num_records(self) -> int:
        return len(self._names("records"))

    def close(self) -> None:
        """Leave nothing running."""
        if self.driver is not None and self.driver.poll() is None:
            os.killpg(self.driver.pid, signal.SIGKILL)
            self.driver.wait()
        self.cluster.shutdown()

    def _workers(self, title: str) -> list[int]:
        """Processes of this cluster with that title: children of its raylets."""
        raylets = {
            process.process.pid for node in self.cluster.list_all_nodes() for process in node.all_processes["raylet"]
        }
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError, ValueError, IndexError):
                if entry.name.isdigit() and (entry / "cmdline").read_text().startswith(title):
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    if parent in raylets:
                        found.append(int(entry.name))
        return found

    def _expose(self) -> None:
        """Note the rows that are denoised and have no record: with the driver or a node, their latents may be lost."""
        denoised = {row for log in self.logs for row in _DENOISED.findall(log.read_text())}
        self.exposed.update(denoised - {name.removesuffix(".json") for name in self._names("records")})

    def _names(self, folder: str) -> list[str]:
        from wan_ray.storage.blob import Store

        return Store(OUTPUT).names(folder)

    def faults(self) -> list[str]:
        """All that is not as it should be."""
        from wan_ray.storage.blob import Store
        from wan_ray.storage.index import read_index

        store = Store(OUTPUT)
        wanted = [f"clip-{n:03d}" for n in range(self.num_rows)]
        records = [json.loads(store.get(f"records/{name}")) for name in store.names("records")]
        found = [] if sorted(r["id"] for r in records) == wanted else [f"records are of {[r['id'] for r in records]}"]
        found += [f"{r['id']} failed: {r['error_message']}" for r in records if r["status"] != "ok"]
        named = {r["clip"]: r["sha256"] for r in records if r["clip"]}
        there = {f"clips/{entry.name}" for entry in store.entries("clips")}
        if there != set(named):
            found.append(f"clips without a record {sorted(there - set(named))}, or gone {sorted(set(named) - there)}")
        found += [
            f"{clip} is not what its record says"
            for clip in sorted(there & set(named))
            if hashlib.sha256(store.get(clip)).hexdigest() != named[clip]
        ]
        if sorted(read_index(store)["id"].to_pylist()) != wanted:
            found.append("the index has other rows than the records")
        rendered = Counter(row for log in self.logs for row in _DENOISED.findall(log.read_text()))
        found += [
            f"{row} was denoised {times} times, and lost {self.exposed[row]} times at most"
            for row, times in rendered.items()
            if times > 1 + self.exposed[row]
        ]
        left = store.names("claims") + store.names("progress")
        return found + ([f"left over: {left}"] if left else [])


def _prepared(folder: Path, num_rows: int) -> Path:
    """The manifest and the model; the config's place."""
    from wan_ray.model.debug import write_debug_checkpoint

    write_debug_checkpoint(folder / "checkpoint")
    rows = [{"id": f"clip-{n:03d}", "prompt": f"A road, take {n}"} for n in range(num_rows)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "manifest.parquet")
    config = {
        "model": {
            "variant": "debug",
            "checkpoint": str(folder / "checkpoint"),
            "device": "cpu",
            "gang": {"max_tries": 20},
        },
        "manifest": str(folder / "manifest.parquet"),
        "output": OUTPUT,
        "defaults": {"width": 64, "height": 48, "num_frames": 5, "num_inference_steps": 500},  # seconds
        "stages": {
            "encode": {"num_cpus": 0.2},
            "denoise": {"num_cpus": 0.2, "replicas": 2},
            "decode": {"num_cpus": 0.2, "replicas": 2},
            "publish": {"num_cpus": 0.1},
        },
        "video": {"threads": 1},
        "no_progress_timeout_s": 240,
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    return folder / "config.yaml"


def weather(*, rows: int, times: int, seed: int, share: float, log: Any = sys.stderr) -> list[str]:
    """What is wrong after so many strikes of each kind; none if all is well."""
    from wan_ray.cli import main

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    dice = random.Random(seed)
    strikes = ["driver", "rank", "decode", "node"] * times
    dice.shuffle(strikes)
    with flaky_s3(seed=seed) as s3, tempfile.TemporaryDirectory(prefix="storm", dir="/tmp") as folder:
        os.environ.update(s3.environment())
        fsspec.config.set_conf_env(fsspec.config.conf)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        storm = Storm(Path(folder), rows)
        try:
            s3.share = share
            begun = time.monotonic()
            # By the number of records that there are, and with rows enough left for the last one to hit.
            at = sorted(dice.uniform(0, rows * 0.6) for _ in strikes)
            while True:
                storm.steady()
                if storm.has_ended():
                    break
                if strikes and storm.num_records() >= at[0] and storm.strike(strikes[0]):
                    print(
                        f"{time.monotonic() - begun:6.0f} s  {storm.num_records():4d} records  killed: {strikes[0]}",
                        file=log,
                    )
                    strikes, at = strikes[1:], at[1:]
                time.sleep(dice.uniform(0.2, 1.0))
            s3.share = 0.0
            told = f"ended; killed {dict(storm.done)}; faults of the bucket {dict(s3.counts)}"
            print(f"{time.monotonic() - begun:6.0f} s  {told}", file=log)
            main(["gc", OUTPUT, "--older-than", "0"])
            left = [f"not killed: {Counter(strikes)}"] if strikes else []
            return left + storm.faults()
        finally:
            storm.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--times", type=int, default=20, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=0.02, help="of the bucket's answers that fail")
    options = parser.parse_args()
    wrong = weather(rows=options.rows, times=options.times, seed=options.seed, share=options.share)
    sys.stdout.write("\n".join(wrong or ["all is well"]) + "\n")
    sys.exit(bool(wrong))
