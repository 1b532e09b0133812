"""What a tokenizer does in one version of transformers and not in another.

Used by lessons: 01.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

CONFIG = "tokenizer_config.json"
# To these, transformers 4 gave a first token as the file says, by default one; 5 goes by
# tokenizer.json alone. To other classes both do the same.
CLASSES = re.compile(r"(Llama|CodeLlama|Gemma|Cohere)Tokenizer(Fast)?")


def first_token_differs(tokenizer: Any) -> dict[str, Any]:
    """Return what the tokenizer's file says of a first token, if it does otherwise, else {}."""
    config = _config(getattr(tokenizer, "name_or_path", ""))
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is None or not CLASSES.fullmatch(str(config.get("tokenizer_class"))):
        return {}
    said = bool(config.get("add_bos_token", True))
    first = tokenizer("a")["input_ids"][:1]
    if said == (first == [bos]):
        return {}
    return {"add_bos_token": said, "first token": tokenizer.decode(first)}


def _config(name: str) -> dict[str, Any]:
    """Return the tokenizer's configuration from its folder or the cache; {} if it is not there."""
    try:
        file = cached_file(name, CONFIG, local_files_only=True) if name else None
        read = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}
