"""Runs beside Ray on a spot machine: drains the node when the cloud says that it will take the machine away.

From then on Ray starts nothing on it, and rows go to other nodes; the row in work may end in the time that is left.
On Kubernetes it is not needed: there the pod gets SIGTERM, and `ray start --block` drains on that.
"""

import argparse
import logging
import subprocess
import sys
import time
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

logger = logging.getLogger("watch_preemption")

_POLL_S = 2.0
# Seconds between the notice and the end.
_LEFT_S = {"aws": 120, "gcp": 30}
_METADATA = {"aws": "http://169.254.169.254", "gcp": "http://metadata.google.internal"}


def noticed(cloud: str, metadata: str) -> bool:
    """Whether this machine is to be taken away; False as well while the metadata server does not answer."""
    try:
        if cloud == "gcp":
            path, headers = "/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"}
            return _read(Request(metadata + path, headers=headers)) == "TRUE"
        asked = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
        token = _read(Request(f"{metadata}/latest/api/token", method="PUT", headers=asked))
        path, headers = "/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token}
        return bool(_read(Request(metadata + path, headers=headers)))
    except HTTPError as error:
        if error.code == 404:  # how AWS says: no notice
            return False
        logger.warning("%s answers %d", metadata, error.code)
        return False
    except (URLError, TimeoutError):
        return False


def _read(request: Request) -> str:
    with urlopen(request, timeout=2) as answer:
        return answer.read().decode()


def main() -> int:
    """Wait for the notice, drain this node, and return `ray drain-node`'s exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cloud", choices=sorted(_METADATA))
    parser.add_argument("--address", required=True, help="of the Ray cluster, HOST:PORT")
    parser.add_argument("--metadata", help="URL of the metadata server, instead of the cloud's own")
    options = parser.parse_args()
    while not noticed(options.cloud, options.metadata or _METADATA[options.cloud]):
        time.sleep(_POLL_S)
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", f"{options.cloud} takes the machine away"]
    left = ["--deadline-remaining-seconds", str(_LEFT_S[options.cloud])]
    return subprocess.run(["ray", "drain-node", "--address", options.address, *reason, *left], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
