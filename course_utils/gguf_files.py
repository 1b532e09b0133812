"""GGUF, the files of llama.cpp: written by its converters, made smaller by its functions, and read.

The converters are llama.cpp's own (scripts/llama_converter.py fetches them); each runs in a process
of its own, on files of this machine alone. A file is there whole or not at all.

Used by lessons: 12.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from course_utils.files import whole

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFReader

SOURCE = "llama-cpp-python==0.3.36"  # its source has llama.cpp's repository in it
CONVERTER = Path(sys.prefix) / "share" / "llama.cpp"
SCRIPTS = MODEL, ADAPTER = "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"
KINDS = ("Q8_0", "Q4_K_M")
INSTALL = (
    "`make ship` fetches both; or: pip install -r requirements-ship.txt -c constraints.txt, then "
    "python scripts/llama_converter.py"
)
# Runs a converter; the name of a pre-tokenizer that is given takes the place of its own guess.
RUN = """
import runpy, sys
root, script, pre, *rest = sys.argv[1:]
sys.path[:0] = [root, root + "/gguf-py"]
if pre:
    from conversion import TextModel
    TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
sys.argv = [script, *rest]
runpy.run_path(root + "/" + script, run_name="__main__")
"""


def convert(
    folder: str | Path, file: str | Path, outtype: str = "f32", pre: str | None = None
) -> Path:
    """Write a model's folder as one GGUF file, and return its path.

    `outtype` is the converter's own: f32, f16, bf16, q8_0. `pre` names the pre-tokenizer, one that
    llama.cpp knows, where the converter does not recognise the folder's; whether the ids are equal
    then has to be measured.

    Raises:
        FileNotFoundError: if there is no model in safetensors there, or the converter is missing.
        ValueError: if the folder brings code of its own, which the converter would run.
        RuntimeError: if the converter fails, with its words.
    """
    path = Path(folder)
    if (path / "adapter_config.json").is_file():
        raise FileNotFoundError(
            f"'{path}' is an adapter, not a model. Allowed is a folder with a whole model. Merge "
            "it first (merge_and_unload, then save_pretrained), or use convert_adapter."
        )
    _require_model(path)
    if not [*path.glob("*.safetensors")]:
        raise FileNotFoundError(
            f"'{path}' has no weights in safetensors. Allowed is what model.save_pretrained("
            "folder) writes; pickles are not opened. Save the model again."
        )
    options = ["--outtype", outtype]
    return _run(MODEL, pre or "", Path(file), [*options, str(path.resolve())])


def convert_adapter(folder: str | Path, base: str | Path, file: str | Path) -> Path:
    """Write a LoRA's folder as a GGUF file, to be applied to its base's at run time.

    Of the base the config is read, no weight. What llama.cpp takes of an adapter is another matter:
    `preflight.adapter_check` says it, and `as_plain_lora` writes one that it takes as it is.

    Raises:
        FileNotFoundError: if there is no adapter, no base, or the converter is missing.
        ValueError: if the base brings code of its own.
        RuntimeError: if the converter refuses the adapter, with its words.
    """
    path = Path(folder)
    if not (path / "adapter_model.safetensors").is_file():
        raise FileNotFoundError(
            f"'{path}' has no adapter_model.safetensors. Allowed is an adapter's folder as "
            "model.save_pretrained(folder) writes it. Check the path."
        )
    _require_model(Path(base))
    options = ["--outtype", "f32", "--base", str(Path(base).resolve())]
    return _run(ADAPTER, "", Path(file), [*options, str(path.resolve())])


def _require_model(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"'{path}' has no config.json. Allowed is a folder with a whole model, as "
            "model.save_pretrained(folder) and tokenizer.save_pretrained(folder) write it. Check "
            "the path; a model of the hub download first."
        )
    for name in ("config.json", "tokenizer_config.json"):
        file = path / name
        if file.is_file() and "auto_map" in json.loads(file.read_text(encoding="utf-8")):
            raise ValueError(
                f"'{file}' has an auto_map: the folder brings code of its own, and the converter "
                "would run it (it loads some tokenizers with trust_remote_code). Allowed is a "
                "model that transformers knows. Read that code, and convert it elsewhere if you "
                "trust it."
            )


def _run(script: str, pre: str, file: Path, options: list[str]) -> Path:
    if not (CONVERTER / script).is_file():
        raise FileNotFoundError(f"llama.cpp's converter is not in '{CONVERTER}'. {INSTALL}.")
    with whole(file) as part:
        command = [sys.executable, "-P", "-c", RUN, str(CONVERTER), script, pre]
        done = subprocess.run(
            [*command, "--outfile", str(part.resolve()), *options],
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        if done.returncode or not part.is_file():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            hint = "Read its words above."
            if "pre-tokenizer was not recognized" in done.stderr:
                hint = (
                    "It knows pre-tokenizers by what they make of one text, and this one is new to "
                    "it. Name one of llama.cpp's that gives the same ids, with pre=, and compare."
                )
            raise RuntimeError(f"{script} wrote nothing: {' '.join(lines[-2:])[-600:]} {hint}")
    return file


def read(file: str | Path) -> GGUFReader:
    """Return a GGUF file's reader: fields and tensors, parsed and not run.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is no GGUF file, or not a whole one.
    """
    from gguf import GGUFReader

    if not Path(file).is_file():
        raise FileNotFoundError(f"There is no file '{file}'. Convert a model first.")
    try:
        return GGUFReader(file)
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise ValueError(
            f"'{file}' is no whole GGUF file ({error}). Allowed is one as a converter wrote it. "
            "Convert or download it again."
        ) from error


def quantize(source: str | Path, file: str | Path, kind: str = "Q4_K_M") -> Path:
    """Write a GGUF file again with fewer bits, and return its path.

    `kind` is "Q8_0" or "Q4_K_M". Which tensor gets which type is llama.cpp's rule for dense models
    (src/llama-quant.cpp); the rounding is done by the engine's own ggml_quantize_chunk (ggml.h).
    The tensors are, bit for bit, those of llama.cpp's program llama-quantize (a test has its hash).

    Raises:
        FileNotFoundError, ValueError: as `read`; if the kind is another, or the source quantized.
        RuntimeError: if the engine is missing, or does not show that function.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
    from gguf.quants import dequantize

    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}. Allowed is {' or '.join(KINDS)}. Give one of them.")
    reader, chunk = read(source), _quantizer()
    plain = {"F32", "F16", "BF16"}
    if found := {t.tensor_type.name for t in reader.tensors} - plain:
        raise ValueError(
            f"'{source}' is quantized already ({', '.join(sorted(found))}): rounding twice loses "
            f"more. Allowed is {', '.join(sorted(plain))}. Convert the model's folder anew."
        )
    arch = str(reader.fields["general.architecture"].contents())
    layers = int(reader.fields[f"{arch}.block_count"].contents())
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    with whole(Path(file)) as part:
        writer = GGUFWriter(part, arch)
        for field in reader.fields.values():
            if field.name.startswith("GGUF.") or field.name == "general.architecture":
                continue
            value = field.contents()
            if field.name == "general.file_type":
                value = int(LlamaFileType[f"MOSTLY_{kind}"])
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, value, field.types[0], inner)
        for tensor in reader.tensors:
            values = dequantize(tensor.data, tensor.tensor_type)
            if len(tensor.shape) < 2 or "_norm" in tensor.name:
                writer.add_tensor(tensor.name, values)
                continue
            to = GGMLQuantizationType[_type_of(tensor.name, values.shape[-1], layers, tied, kind)]
            writer.add_tensor(tensor.name, _rounded(values, to, chunk), raw_dtype=to)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return Path(file)


def _type_of(name: str, columns: int, layers: int, tied: bool, kind: str) -> str:
    """Return a matrix's type; llama-quant.cpp: llama_tensor_get_type_impl, tensor_type_fallback."""
    if kind == "Q8_0":
        return "Q8_0"
    to = "Q4_K"
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        to = "Q6_K"
    elif ".attn_v." in name or ".ffn_down." in name:
        layer, few = int(name.split(".")[1]), layers // 8
        if layer < few or layer >= 7 * layers // 8 or (layer - few) % 3 == 2:
            to = "Q6_K"
    if columns % 256:  # the blocks of these types are 256 wide
        to = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}[to]
    return to


def _quantizer() -> ctypes._CFuncPtr:
    """Return ggml_quantize_chunk of the engine's library.

    It has to be asked of the library, since the Python package has no name for it.
    """
    try:
        from xllamacpp import xllamacpp

        chunk = ctypes.CDLL(xllamacpp.__file__).ggml_quantize_chunk
    except (ImportError, OSError, AttributeError) as error:
        raise RuntimeError(
            f"The engine's function ggml_quantize_chunk is not there ({error}). {INSTALL}. Where "
            "its library hides it (on Windows), use llama.cpp's own program llama-quantize."
        ) from error
    chunk.restype = ctypes.c_size_t
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    chunk.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
    return chunk


def _rounded(values: np.ndarray, kind: GGMLQuantizationType, chunk: ctypes._CFuncPtr) -> np.ndarray:
    import numpy as np
    from gguf import GGML_QUANT_SIZES

    wide, size = GGML_QUANT_SIZES[kind]
    rows = np.ascontiguousarray(values, np.float32)
    out = np.empty((*rows.shape[:-1], rows.shape[-1] // wide * size), np.uint8)
    count = rows.size // rows.shape[-1]
    chunk(int(kind), rows.ctypes.data, out.ctypes.data, 0, count, rows.shape[-1], None)
    return out
