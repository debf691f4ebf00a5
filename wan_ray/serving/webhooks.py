"""Webhooks: telling a client's server that a job has ended, signed as https://www.standardwebhooks.com has it.

Each API key has a secret of its own, made from its hash: a client cannot sign what another one would believe.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Sequence
from datetime import datetime

import aiohttp
from yarl import URL

from wan_ray.errors import RequestError
from wan_ray.serving.api_error import ApiError
from wan_ray.serving.jobs import Job
from wan_ray.serving.keys import Keys
from wan_ray.serving.remote import Hosts, check_reachable, connected, parse_url
from wan_ray.storage.records import Record

logger = logging.getLogger(__name__)

ATTEMPT_TIMEOUT_S = 15.0
_ASK_AGAIN = (408, 429)


class Webhooks:
    """Owned by whoever sees to the ends of jobs. allowed_hosts are config.serve.allowed_media_hosts."""

    def __init__(self, keys: Keys, *, allowed_hosts: Sequence[str] = ()) -> None:
        self._keys = keys
        self._allowed_hosts = allowed_hosts

    async def check(self, owner: str, url: str) -> None:
        """ApiError 400 when this owner cannot be told at this URL: no key to sign with, no address on the internet."""
        if not self._secrets(owner):
            raise _refused("a webhook is signed with an API key's secret, and this server has no keys; poll the video")
        try:
            await check_reachable(url, self._allowed_hosts)
        except RequestError as error:
            raise _refused(str(error)) from None

    async def deliver(self, job: Job, record: Record) -> bool:
        """Try once to say how the job ended; True when nothing is gained by another try.

        That is when it was accepted (2xx), when it is refused (4xx, but 408 and 429), and when the URL may not be
        reached. False, after ATTEMPT_TIMEOUT_S at most: it may be accepted later.
        """
        url, secrets = job.webhook_url, self._secrets(job.owner)
        if url is None or not secrets:
            return True
        try:
            status = await _post(parse_url(url), Hosts(self._allowed_hosts), event_of(job, record), secrets)
        except RequestError:  # its message names the URL, which may hold a secret
            logger.warning("webhook refused request_id=%s reason=its URL leads inside a network, or nowhere", job.id)
            return True
        except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
            logger.warning("webhook failed request_id=%s reason=%s", job.id, type(error).__name__)
            return False
        logger.info("webhook answered request_id=%s status=%d", job.id, status)
        return 200 <= status < 300 or (400 <= status < 500 and status not in _ASK_AGAIN)

    def _secrets(self, owner: str) -> list[bytes]:
        return [_secret(digest) for one, digest in self._keys.entries if one == owner]


def webhook_secret(key_sha256: str) -> str:
    """What the holder of a key verifies its webhooks with, as OpenAI's clients take it."""
    return "whsec_" + base64.b64encode(_secret(key_sha256)).decode()


def event_of(job: Job, record: Record) -> dict[str, object]:
    """What is sent: the same at every try, so that a receiver can tell that it had it before."""
    kind = "completed" if record.status == "ok" else "failed"
    kind = "cancelled" if record.error_type == "CancelledError" else kind
    return {
        "id": "evt_" + hashlib.sha256(f"{job.id} {kind}".encode()).hexdigest()[:32],
        "object": "event",
        "type": f"video.{kind}",
        "created_at": int(datetime.fromisoformat(record.created_at).timestamp()),
        "data": {"id": job.id},
    }


async def _post(target: URL, hosts: Hosts, event: dict[str, object], secrets: Sequence[bytes]) -> int:
    """The status of the answer, of which no more is read; redirects are not followed."""
    body = json.dumps(event).encode()
    async with asyncio.timeout(ATTEMPT_TIMEOUT_S), connected(target, hosts) as session:
        headers = _headers(str(event["id"]), int(time.time()), body, secrets)
        async with session.post(target, data=body, headers=headers, allow_redirects=False) as answer:
            return answer.status


def _headers(event_id: str, now: int, body: bytes, secrets: Sequence[bytes]) -> dict[str, str]:
    """One signature for each secret, so that an owner's old key and its new one both verify."""
    signed = f"{event_id}.{now}.".encode() + body
    signatures = [base64.b64encode(hmac.digest(secret, signed, "sha256")).decode() for secret in secrets]
    return {
        "content-type": "application/json",
        "user-agent": "wan_ray",
        "webhook-id": event_id,
        "webhook-timestamp": str(now),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def _secret(key_sha256: str) -> bytes:
    return hmac.digest(bytes.fromhex(key_sha256), b"wan_ray webhooks", "sha256")


def _refused(message: str) -> ApiError:
    return ApiError(400, "invalid_webhook_url", f"webhook_url: {message}", param="webhook_url")
