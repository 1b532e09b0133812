"""Make the bad dataset: faults of form, length and repetition in its rows, each known.

    python data/build/make_bad.py [FOLDER]

There is no chance in it, so every run writes the same bytes. The faults are as they happen: a field
that an export left empty, two exports in one file, a message that was logged twice.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

NAMES = ["Ada", "Boris", "Clara", "Dinah", "Edwin", "Flora", "Gregor", "Hilda", "Igor", "Jonna"]
ITEMS = ["teapot", "lantern", "rucksack", "doormat", "alarm clock", "umbrella", "bread knife"]
COLOURS = ["green", "ivory", "scarlet", "grey", "mustard"]
CITIES = ["Ashford", "Brindle", "Corby", "Dunmore", "Elmwick", "Fairhaven"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"]
PROBLEMS = {
    "arrived broken": "It was in pieces when I opened the box.",
    "never arrived": "It has not come to this day.",
    "wrong colour": "That is not the colour that I chose.",
    "parts missing": "Half of the parts are not in the box.",
}
MOODS = ["angry", "calm", "cheerful", "worried"]
# Longer than the usual max_length (1024) with any tokenizer: 1,300 words.
RAMBLE = " ".join(f"and on day {day} I waited at the door in vain" for day in range(1, 131))


class File:
    """The lines of one file, and which row (or line) holds which faults."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.faults: dict[str, list[int]] = defaultdict(list)

    def add(self, row: object, *faults: str) -> None:
        """Append a row that has these faults."""
        for fault in faults:
            self.faults[fault].append(len(self.lines))
        self.lines.append(json.dumps(row).encode())


def good(number: int) -> dict[str, object]:
    """Return a sound row of the kind of `tickets`; other numbers below 200 give other rows."""
    name, item = NAMES[number % 10], ITEMS[number % 7]
    colour, city = COLOURS[number // 2 % 5], CITIES[number // 3 % 6]
    day = DAYS[number // 5 % 6]
    problem = list(PROBLEMS)[number // 4 % 4]
    mood = number % 4
    message = (
        f"Hello, I am {name} from {city}. On {day} I ordered a {item} in {colour}. "
        f"{PROBLEMS[problem]}"
    )
    record = {"name": name, "item": item, "colour": colour, "day": day, "city": city}
    record |= {"problem": problem, "mood": MOODS[mood]}
    return {
        "prompt": f"Message: {message}\nTicket:",
        "completion": " " + json.dumps(record),
        "label": mood,
    }


def turn(role: str, content: str) -> dict[str, str]:
    """Return one message of a conversation."""
    return {"role": role, "content": content}


def chat(number: int, prompt: list[dict[str, str]], *completion: dict[str, str]) -> object:
    """Return a row whose prompt and completion are messages, among rows of text."""
    return {"prompt": prompt, "completion": list(completion), "label": number % 4}


def make_train() -> File:
    """Return the rows of bad.jsonl: a fault in every other row or so."""
    file = File()
    numbers = iter(range(200))

    def sound(count: int = 1) -> None:
        for _ in range(count):
            file.add(good(next(numbers)))

    def broken(*faults: str, **changes: object) -> None:
        row = good(next(numbers)) | changes
        file.add({name: value for name, value in row.items() if value != "(drop)"}, *faults)

    sound(3)
    broken("none_value", completion=None)
    sound()
    broken("none_value", prompt=None)
    broken("missing_column", completion="(drop)")
    sound()
    broken("empty_value", completion="")
    broken("empty_value", completion="   \n")
    sound(2)
    broken("wrong_type", completion=42)
    broken("wrong_type", completion={"name": "Ada", "item": "teapot"})
    sound()
    # A row logged twice, and once more with other spaces; a prompt with two answers.
    file.add(good(0), "duplicate")
    first = good(1)
    file.add(first | {"prompt": first["prompt"].replace("Hello, ", "HELLO,  ")}, "duplicate")
    file.add(good(2) | {"completion": " " + json.dumps({"name": "Zoe"})}, "conflicting_answers")
    sound()
    markup = "Message: Hello.\x1b[31m <script>alert('parcel')</script> My lamp is late.\nTicket:"
    broken("control_character", prompt=markup)
    broken("control_character", completion=' {"name": "Hil\x00da"}')
    broken(
        "replacement_character", prompt="Message: I am Zo\ufffd, my caf\ufffd set is late.\nTicket:"
    )
    sound()
    # The tokenizer would join the space with the brace after it.
    broken(
        "prompt_ends_in_space",
        "boundary_moves",
        prompt="Message: Hello, my parcel is late, Ivo.\nTicket: ",
        completion='{"name": "Ivo", "problem": "never arrived"}',
    )
    broken("label_out_of_range", label=-1)
    broken("label_out_of_range", label=9)
    sound()
    broken(
        "too_long",
        "completion_cut_away",
        prompt=f"Message: Hello, I am Piet {RAMBLE}.\nTicket:",
    )
    broken(
        "too_long",
        "completion_cut_partly",
        completion=f' {{"name": "Piet", "problem": "never arrived", "notes": "{RAMBLE}"}}',
    )
    sound(2)
    # Another export, in messages, ended up in the same file.
    ask, reply = turn("user", "Where is my lamp?"), turn("assistant", "On its way.")
    file.add(chat(0, [ask], reply), "mixed_forms")
    file.add(chat(1, [reply], ask, reply), "mixed_forms", "assistant_first")
    file.add(chat(2, [ask, turn("user", "Hello?")], reply), "mixed_forms", "repeated_role")
    file.add(chat(3, [ask], turn("clerk", "Soon.")), "mixed_forms", "unknown_role")
    file.add(chat(4, [ask, turn("system", "Be brief.")], reply), "mixed_forms", "system_not_first")
    file.add(chat(5, [ask], turn("tool", "Lamp: lost.")), "mixed_forms", "no_assistant")
    file.add(chat(6, [ask], reply, turn("user", "Thanks!")), "mixed_forms", "ends_with_user")
    file.add(chat(7, [ask], turn("assistant", "")), "mixed_forms", "empty_value")
    sound(2)
    return file


def make_validation() -> File:
    """Return the rows of validation.jsonl, some of which bad.jsonl has too."""
    file = File()
    for number in (100, 101):
        file.add(good(number))
    file.add(good(0), "split_overlap")
    file.add(good(102))
    prompt = str(good(1)["prompt"])
    file.add(good(1) | {"prompt": prompt.upper()}, "split_overlap")
    file.add(good(103) | {"prompt": prompt}, "prompt_overlap")
    return file


def make_tokenised() -> File:
    """Return the rows of tokenised.jsonl: token ids and labels, as a home-made script would."""
    file = File()
    ids = [7, 21, 34, 55, 89, 13]
    answer = [-100, -100, -100, 55, 89, 13]
    file.add({"input_ids": ids, "labels": answer})
    file.add({"input_ids": ids[::-1], "labels": [-100] * 6}, "fully_masked")
    file.add({"input_ids": [5, *ids], "labels": [-100, *answer[:-1], -5]}, "label_out_of_range")
    file.add({"input_ids": [6, 99_000_000], "labels": [-100, 6]}, "token_out_of_range")
    file.add({"input_ids": [9, *ids], "labels": answer}, "wrong_type")
    file.add({"input_ids": [], "labels": []}, "empty_value")
    long = [number % 90 for number in range(1400)]
    late = [-100] * 1200 + long[1200:]
    file.add({"input_ids": long, "labels": late}, "too_long", "completion_cut_away")
    file.add({"input_ids": [8, *ids], "labels": [-100, *answer]})
    return file


def make_broken() -> File:
    """Return the lines of broken.jsonl, some of which are no JSON; these count lines from 1."""
    file = File()
    file.add({"text": "Hello, my teapot came in pieces."})
    file.add({"text": "Hello, the doormat is grey, not green."})
    whole = file.lines[0]
    file.lines += [whole[: len(whole) // 2], b"{'text': 'written with single quotes'}"]
    file.lines += [b'["a list, not an object"]', b'{"text": "one"} {"text": "two in a line"}']
    file.faults["broken_line"] = [3, 4, 5, 6]
    # Rows count the readable lines only: these are the third and fourth.
    file.lines.append('{"text": "My café set is late."}'.encode("latin-1"))
    file.lines.append(b'{"text": "Thank you \\ud83d"}')  # half of an emoji
    file.faults["replacement_character"] = [2]
    file.faults["bad_unicode"] = [3]
    return file


def make_dates() -> File:
    """Return the rows of dates.jsonl, whose answers load_dataset takes for dates."""
    file = File()
    for number in range(6):
        asked = {"prompt": f"Message: When was order {number} sent?\nTicket:"}
        file.add(asked | {"completion": f"2024-02-{number + 10}"}, "text_as_other_type")
    return file


def make_codes() -> File:
    """Return the lines of codes.csv, whose answers load_dataset takes for numbers."""
    file = File()
    file.lines.append(b"prompt,completion")
    file.lines += [f"Message: Which code has item {n}?,00{n * 7}".encode() for n in range(1, 6)]
    file.faults["text_as_other_type"] = [*range(5)]
    return file


def make_bad(folder: Path) -> None:
    """Write the files of the bad dataset, and faults.json, which says what is where."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "bad.jsonl": make_train(),
        "validation.jsonl": make_validation(),
        "tokenised.jsonl": make_tokenised(),
        "broken.jsonl": make_broken(),
        "dates.jsonl": make_dates(),
        "codes.csv": make_codes(),
    }
    for name, file in files.items():
        (folder / name).write_bytes(b"".join(line + b"\n" for line in file.lines))
    faults = {name: dict(sorted(file.faults.items())) for name, file in files.items()}
    lines = ",\n".join(
        f"  {json.dumps(name)}: {{\n"
        + ",\n".join(f"    {json.dumps(code)}: {rows}" for code, rows in found.items())
        + "\n  }"
        for name, found in faults.items()
    )
    (folder / "faults.json").write_bytes(f"{{\n{lines}\n}}\n".encode())


if __name__ == "__main__":
    make_bad(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "bad")
