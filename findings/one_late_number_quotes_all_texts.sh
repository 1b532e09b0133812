#!/usr/bin/env bash
# One number among texts, far down a JSON file, puts hundreds of other texts into quotes.
#
# datasets 5.2.0, pyarrow 26.0.1.
# load_dataset reads a JSON file in parts of 10 MB. A field that is text in the first rows and a
# number in a later one is a slip that people meet in files that were joined.
# Guess: an error that names the field, or the number becomes text and the rest stays as it is.
# Seen: among the first rows, "yes", 5, "no" are loaded as they are, as Json. In a later part there is
#       no error and no warning, and every text of that part's field is loaded as JSON source, with
#       quotes around it ('"no"'), in rows before the number too; so is the rest of the file. The
#       first part has none.
# Check for it by a text that begins and ends with a quote; read with
# load_dataset(..., chunksize=<bytes of the file>) to make it one part.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pyarrow==26.0.1
"$place/venv/bin/python" - <<'PYTHON'
import json
import tempfile
import warnings
from pathlib import Path

import datasets

datasets.disable_progress_bars()


def load(answers):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.jsonl")
        file.write_text("".join(json.dumps({"answer": answer}) + "\n" for answer in answers))
        cache = str(Path(folder, "cache"))
        found = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=cache)
        return found["answer"][:]


def quoted(answers):
    return sum(isinstance(a, str) and a[:1] == a[-1:] == '"' for a in answers)


long = ["x" * 1000] * 11_000  # a little more than 10 MB
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    early = load(["yes", 5, "no"])
    sound = load([*long, "yes", "no", "no"])
    late = load([*long, "yes", 5, "no"])
warned = [str(w.message) for w in caught if "type" in str(w.message).lower()]
print(f"early: {early}")
print(f"without the number: {quoted(sound)} of {len(sound):,} texts in quotes")
print(f"with it: {quoted(late):,} of {len(late):,}, the last three {late[-3:]}; warnings: {warned}")
seen = (
    early == ["yes", 5, "no"]
    and quoted(sound) == 0
    and late[-3:] == ['"yes"', "5", '"no"']
    and 100 < quoted(late) < len(late) / 2
    and not warned
)
if not seen:
    raise SystemExit("changed since it was written")
print("as it was seen")
PYTHON
