"""What a tokenizer needs before a training: a pad token, and a template that marks the answers.

Used by lessons: all.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file
from trl import get_training_chat_template
from trl.chat_template_utils import has_generation_markers

# For a tokenizer without a template of its own, or with one that marks no answers and is not built
# of turns that look alike.
PLAIN_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- message['role'].capitalize() + ': ' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}"
    "{%- else -%}{{- message['content'] -}}{%- endif -%}"
    "{{- '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant: ' -}}{%- endif -%}"
)
# Texts that no template holds: what stands around them in a rendering is the template's.
TURNS = ["q7q-one", "q7q-two", "q7q-three", "q7q-four"]
CONFIG = "tokenizer_config.json"
# To these, transformers 4 gave a first token as the file says, by default one; 5 goes by
# tokenizer.json alone. To other classes both do the same.
CLASSES = re.compile(r"(Llama|CodeLlama|Gemma|Cohere)Tokenizer(Fast)?")


def with_pad_token(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return the tokenizer with a pad token that ends no text, where it has one to give.

    A pad token that is also the end of a text is dangerous: a collator that takes the label from
    every pad token takes it from the real end too, and the model does not learn to stop. So a pad
    token that is not the end is kept; else a special token is taken that was made for padding or
    left for later use, or the one for unknown letters, which a tokenizer that knows all bytes never
    gives. Where there is none, as in GPT-2's, the end has to do: the collators of TRL and those of
    this course go by position.
    """
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    free = [token for word in ("pad", "reserved") for token in special if word in token.lower()]
    candidates = [tokenizer.pad_token, *free, tokenizer.unk_token]
    fine = [token for token in candidates if token and token != tokenizer.eos_token]
    tokenizer.pad_token = fine[0] if fine else tokenizer.eos_token
    return tokenizer


def with_training_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return the tokenizer with a chat template that marks what the assistant says.

    `assistant_only_loss=True` needs the mark (`{% generation %}`). A template that has it is kept.
    Else it is written anew from what the tokenizer's own template puts around each turn, and taken
    if both render the same text; else TRL's training template for it; else a plain one, which is
    not what a chat model was trained with.
    """
    own = tokenizer.chat_template
    if own is None or not isinstance(own, str):
        tokenizer.chat_template = PLAIN_TEMPLATE
    elif not has_generation_markers(own):
        tokenizer.chat_template = _marked(tokenizer) or _from_trl(tokenizer) or PLAIN_TEMPLATE
    return tokenizer


def first_token_differs(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
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


def _from_trl(tokenizer: PreTrainedTokenizerBase) -> str | None:
    try:
        return get_training_chat_template(tokenizer)
    except (ValueError, TemplateError):  # TRL knows templates to the letter and refuses others
        return None


def _marked(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return a template like the tokenizer's own with the answers marked, if it can be had."""
    roles = ("user", "assistant", "user", "assistant")
    chat = [{"role": role, "content": text} for role, text in zip(roles, TURNS, strict=True)]
    try:
        whole = tokenizer.apply_chat_template(chat, tokenize=False)
        asked = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    except TemplateError:
        return None
    pieces, rest = [], whole
    for text in TURNS:
        before, found, rest = rest.partition(text)
        if not found:
            return None
        pieces.append(before)
    start, answer, between, again = pieces
    if answer != again or not asked.endswith(answer) or not between.startswith(rest):
        return None
    template = (
        "{%- for message in messages -%}{%- if message['role'] == 'user' -%}"
        f"{{{{- ({_quoted(start)} if loop.first else {_quoted(between[len(rest) :])}) -}}}}"
        f"{{{{- message['content'] + {_quoted(answer)} -}}}}"
        "{%- elif message['role'] == 'assistant' -%}"
        f"{{%- generation -%}}{{{{- message['content'] + {_quoted(rest)} -}}}}"
        "{%- endgeneration -%}"
        "{%- else -%}{{- raise_exception('This template takes turns of user and assistant.') -}}"
        "{%- endif -%}{%- endfor -%}"
    )
    same = tokenizer.apply_chat_template(chat, tokenize=False, chat_template=template) == whole
    return template if same else None


def _quoted(text: str) -> str:
    """Return a text as a string of Jinja."""
    return json.dumps(text)
