"""The demo's tokenizer: the debug one, with the words of the captions as tokens of their own."""

import json
from importlib.resources import files
from pathlib import Path

from wan_ray.demo.captions import words
from wan_ray.model.checkpoint import TOKENIZER_FOLDER

_SCORE = -1.0  # above that of any piece, so that a known word is never cut up


def write_tokenizer(checkpoint: Path) -> Path:
    """Write tokenizer.json where a released checkpoint has it, and return its folder."""
    tokenizer = json.loads((files("wan_ray.model") / "debug_tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    known = {piece for piece, _ in vocabulary}
    vocabulary += [[word, _SCORE] for word in words() if word not in known]
    folder = checkpoint / TOKENIZER_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    return folder
