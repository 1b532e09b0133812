"""Lesson 12's helpers: GGUF files, llama.cpp's server, and adapters written again as plain LoRA.

What runs the engine or its converters is left out where they are not installed (`make ship`).
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import re
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from test_shipping import assert_ends_with_its_starter
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from course_utils import gguf_files, recorded
from course_utils.__main__ import main
from course_utils.paths import COURSE_ROOT, POCKET_MODEL
from course_utils.serving import free_port, serve_gguf
from preflight.adapter_check import as_plain_lora, check_adapter

pytestmark = pytest.mark.usefixtures("one_thread")
engine = pytest.mark.skipif(bool(recorded.missing()), reason=recorded.missing())
posix = pytest.mark.skipif(os.name != "posix", reason="kills processes as POSIX does")
# Of the pocket model's tensors as llama_model_quantize of llama.cpp (in llama-cpp-python 0.3.36)
# wrote them, built from that source on 2026-12-01: names, types and bytes, in the order of names.
OF_LLAMA_CPP = {
    "Q8_0": "a15fe0c0b129f826d1a71b332ce76cfe2960326cc78f450ec332d6655ce957db",
    "Q4_K_M": "84bf7d6362793ce1316629ff5f654b8e69f39da67dd17cb5ba82c32970f4b600",
}


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the pocket model as a GGUF file in float32."""
    file = tmp_path_factory.mktemp("gguf") / "pocket.gguf"
    return gguf_files.convert(POCKET_MODEL, file, "f32", "superbpe")


def saved(folder: Path, base: Path = POCKET_MODEL, **settings: object) -> Path:
    """Save a LoRA whose matrices are drawn at random, and return its folder."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    given = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **settings}
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **given))
    for parameter in (p for p in model.parameters() if p.requires_grad):
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def logits(folder: Path) -> torch.Tensor:
    """Return what the pocket model says with an adapter."""
    model = AutoModelForCausalLM.from_pretrained(POCKET_MODEL, dtype=torch.float32)
    with torch.no_grad():
        return PeftModel.from_pretrained(model, folder).eval()(torch.arange(9, 40)[None]).logits


# Files.


@engine
@pytest.mark.parametrize("kind", gguf_files.KINDS)
def test_a_quantized_file_is_that_of_llama_quantize(pocket: Path, kind: str) -> None:
    """The rule of which tensor gets which type is written again here, so it is held to theirs."""
    digest = hashlib.sha256()
    tensors = gguf_files.read(gguf_files.quantize(pocket, pocket.parent / kind, kind)).tensors
    for tensor in sorted(tensors, key=lambda one: one.name):
        digest.update(f"{tensor.name}{tensor.tensor_type.name}".encode() + tensor.data.tobytes())
    assert digest.hexdigest() == OF_LLAMA_CPP[kind]


def shrink_for_ever(source: Path, file: Path) -> None:
    while True:
        gguf_files.quantize(source, file, "Q8_0")


def convert_for_ever(file: Path) -> None:
    while True:
        gguf_files.convert(POCKET_MODEL, file, "f16", "superbpe")


@engine
@posix
def test_what_a_kill_leaves_is_whole_or_not_there(
    pocket: Path, tmp_path: Path, rng: random.Random
) -> None:
    """Eight kills while one file is written over and over, and two of the converter's process."""
    works = [(shrink_for_ever, (pocket, tmp_path / "small.gguf"))] * 8
    works += [(convert_for_ever, (tmp_path / "half.gguf",))] * 2
    there = 0
    for work, arguments in works:
        process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
        process.start()
        time.sleep(rng.uniform(0.1, 1) if work is shrink_for_ever else rng.uniform(2, 8))
        process.kill()
        process.join()
        if arguments[-1].exists():
            there += 1
            assert len(gguf_files.read(arguments[-1]).tensors) == 38
    assert there
    kept = [name.suffix for name in tmp_path.iterdir()]
    assert set(kept) <= {".gguf", ".part"}  # never a half under the name of a whole


@engine
def test_a_folder_with_code_of_its_own_is_not_converted(tmp_path: Path) -> None:
    """The converter loads some tokenizers with trust_remote_code=True."""
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoConfig": "evil.Config"}}')
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="brings code of its own"):
        gguf_files.convert(tmp_path, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


@engine
def test_the_converters_own_refusal_is_passed_on(tmp_path: Path) -> None:
    """A pre-tokenizer that it does not know, and an adapter with more than two matrices."""
    with pytest.raises(RuntimeError, match=r"not recognized[\s\S]*gives the same ids, with pre="):
        gguf_files.convert(POCKET_MODEL, tmp_path / "out.gguf")
    dora = saved(tmp_path / "dora", use_dora=True)
    with pytest.raises(RuntimeError, match="lora_magnitude_vector"):
        gguf_files.convert_adapter(dora, POCKET_MODEL, tmp_path / "out.gguf")
    assert not list(tmp_path.glob("out.gguf*"))


# The server.


@engine
@posix
def test_a_killed_kernel_takes_the_engine_along(pocket: Path) -> None:
    assert_ends_with_its_starter("serve_gguf", pocket)


@engine
def test_the_engine_wants_its_key_and_a_free_port(pocket: Path) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with serve_gguf(pocket, port=free_port()) as (address, key):
        for given, status in (("", 401), ("guess", 401), (key, 200)):
            request = urllib.request.Request(f"{address}/models")
            if given:
                request.add_header("Authorization", f"Bearer {given}")
            try:
                assert direct.open(request, timeout=10).status == status
            except urllib.error.HTTPError as error:
                assert error.code == status
        port = int(address.rpartition(":")[2].partition("/")[0])
        with (
            pytest.raises(OSError, match=rf"Port {port} .*Leave port out"),
            serve_gguf(pocket, port=port),
        ):
            pass


def half(pocket: Path, place: Path) -> Path:
    """Return a file that was cut off."""
    (place / "half.gguf").write_bytes(pocket.read_bytes()[:5_000_000])
    return place / "half.gguf"


def of_another_kind(pocket: Path, place: Path) -> Path:
    """Return a file of an architecture that the engine does not know."""
    named = b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llam"  # a text of 5 letters
    content = pocket.read_bytes().replace(named + b"a", named + b"b")
    (place / "other.gguf").write_bytes(content)
    return place / "other.gguf"


@engine
@pytest.mark.parametrize(
    "spoil, said", [(half, "not within|corrupted|incomplete"), (of_another_kind, "llamb")]
)
def test_a_file_that_the_engine_cannot_read_is_said(spoil, said, pocket, tmp_path) -> None:
    with pytest.raises(RuntimeError, match=rf"(?s)ended before it answered.*({said})"):
        with serve_gguf(spoil(pocket, tmp_path)):
            pass


@engine
def test_an_adapter_of_another_base_is_said(pocket: Path, tmp_path: Path) -> None:
    """The converter reads the base's config alone; the engine holds shapes against the file."""
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=3072, num_attention_heads=2, num_key_value_heads=2, **small)
    other = tmp_path / "other"
    LlamaForCausalLM(config).save_pretrained(other)
    AutoTokenizer.from_pretrained(POCKET_MODEL).save_pretrained(other)
    adapter = saved(tmp_path / "adapter", other)
    file = gguf_files.convert_adapter(adapter, other, tmp_path / "adapter.gguf")
    assert not check_adapter(adapter, POCKET_MODEL).ok
    with pytest.raises(RuntimeError, match=r"(?s)ended before it answered.*wrong base model"):
        with serve_gguf(pocket, [file]):
            pass


# Adapters.


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"alpha_pattern": {"down_proj": 40}},
        {"alpha_pattern": {r"layers\.1\..*q_proj": 3}, "rank_pattern": {"down_proj": 2}},
        {"use_rslora": True, "alpha_pattern": {"q_proj": 5}, "rank_pattern": {"q_proj": 9}},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*use_rslora")
def test_a_scale_in_the_matrices_is_the_same_model(settings, tmp_path: Path) -> None:
    plain = as_plain_lora(saved(tmp_path / "adapter", **settings), tmp_path / "plain")
    config = json.loads((plain / "adapter_config.json").read_text())
    assert not config["use_rslora"] and not config["alpha_pattern"]
    gap = (logits(plain) - logits(tmp_path / "adapter")).abs().max()
    assert gap < 1e-4
    assert all(one.effect == "takes" for one in check_adapter(plain).served[:2])


def test_the_command_writes_and_checks_it(tmp_path: Path, capsys) -> None:
    adapter = saved(tmp_path / "adapter", use_rslora=True)
    assert main(["adapter", str(adapter), "--plain", str(tmp_path / "plain")]) == 0
    printed = capsys.readouterr().out
    assert "llama.cpp" in printed and "rsLoRA" not in printed
    assert (tmp_path / "plain" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"modules_to_save": ["norm"]}, "trained norms"),
        ({"trainable_token_indices": [1]}, "trainable_tokens_delta"),
        ({"target_modules": ["embed_tokens"]}, "LoRA on the embedding"),
        ({"init_lora_weights": "pissa"}, "changes the base"),
    ],
    ids=str,
)
def test_what_cannot_be_plain_is_refused(settings, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{said}[\s\S]*Merge it"):
        as_plain_lora(saved(tmp_path / "adapter", **settings), tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


# The record.


def test_without_the_engine_the_lesson_shows_what_is_on_record(monkeypatch, capsys) -> None:
    """Each measurement of the lesson has its result there, by its name."""
    source = (COURSE_ROOT / "notebooks" / "12_run_it_elsewhere.ipynb").read_text(encoding="utf-8")
    named = re.findall(r'recorded\.measured\(\\"([^"\\]+)\\"', source)
    assert named and sorted(named) == sorted(json.loads(recorded.RECORD.read_text()))
    monkeypatch.setattr(recorded, "find_spec", lambda name: None)
    for name in named:
        recorded.measured(name, lambda: pytest.fail("it was measured"))
    assert "xllamacpp" in capsys.readouterr().out
