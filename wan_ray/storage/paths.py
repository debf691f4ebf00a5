"""Where things stand in a run's output folder: the names, and how a row's id becomes one."""

import hashlib
import re
import unicodedata

CLIPS = "clips"
RECORDS = "records"
INDEX = "index"
RUNS = "runs"
CLAIMS = "claims"
PROGRESS = "progress"
PROMPTS = "prompts"
CONTACT_SHEET = "contact-sheet.png"
REPORT = "report.html"

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_HASHED = re.compile(r".*-[0-9a-f]{16}")
_MAX_SLUG_CHARS = 60


def file_stem(id: str) -> str:
    """A file name without suffix for the row id: ASCII, at most 100 characters, another one for every other id.

    Plain ids stay as they are; any other becomes <readable part>-<16 hex of its sha256>. A plain id that itself ends
    like that is hashed too, so no plain stem ever equals a hashed one.
    """
    if _PLAIN.fullmatch(id) and not _HASHED.fullmatch(id):
        return id
    ascii_text = unicodedata.normalize("NFKD", id).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^A-Za-z0-9]+", "-", ascii_text)[:_MAX_SLUG_CHARS].strip("-") or "row"
    return f"{slug}-{hashlib.sha256(id.encode()).hexdigest()[:16]}"


def clip_key(id: str, sha256: str, suffix: str) -> str:
    """The clip's key. It names the content, so clips are never overwritten, whoever else writes to the folder."""
    return f"{CLIPS}/{file_stem(id)}.{sha256[:12]}{suffix}"


def attempt_stem(name: str, attempt: int) -> str:
    """The file stem of a row's n-th attempt, counted from 1; "~" stands in no name, so none equals another's."""
    return name if attempt == 1 else f"{name}~{attempt}"


def name_and_attempt(stem: str) -> tuple[str, int]:
    """The inverse of attempt_stem."""
    name, _, attempt = stem.partition("~")
    return name, int(attempt) if attempt else 1


def record_key(name: str, attempt: int = 1) -> str:
    """The key of the record of this name's n-th attempt."""
    return f"{RECORDS}/{attempt_stem(name, attempt)}.json"


def prompt_claim(key: str) -> str:
    """The name under which a prompt's reply is claimed. No row's is like it: an id that ends like that gets another."""
    return f"prompt-{key[:16]}"


def progress_key(name: str) -> str:
    """The key of what is saved of an unfinished clip, by its record's name."""
    return f"{PROGRESS}/{name}.safetensors"
