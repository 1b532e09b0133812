"""Make the pairs of `data/preferences`: a right and a wrong answer to the same message.

    OMP_NUM_THREADS=1 python data/build/make_preferences.py [--output data/preferences]

The model of lesson 00, trained here again on chats, answers messages whose words and, in part,
sentences are in no split of `tickets`: once greedily, and eight times sampled at temperature 1. A
message with a wrong answer becomes a pair. Five to six minutes of one core. The messages are the
same on every machine; the answers may differ in a few rows, since rounding does.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import lexicon
import make_datasets
import torch
import world
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PrinterCallback
from trl import SFTConfig, SFTTrainer

from course_utils import data, metrics
from course_utils.files import write_whole
from course_utils.generation import padded
from course_utils.paths import POCKET_MODEL

SEED = 21
SIZES = {"train": 560, "validation": 140}  # messages; a few are always answered right
SAMPLES, BATCH, NEW_TOKENS = 8, 40, 96

# Sentences of which neither the corpus nor any split of `tickets` has one.
PROBLEM_FORMS = {
    "broken": [
        "It lies here in fragments.", "The glass had burst.", "It fell to pieces in my hands.",
        "The leg came off in the box.",
    ],
    "faulty": [
        "The button does nothing.", "It shows no sign of life.", "It switches itself off.",
        "Plugged in or not, it does nothing.",
    ],
    "late": [
        "I had given up hope by the time it came.", "It needed forty days to reach me.",
        "It was promised for last week and came today.", "The waiting took far too long.",
    ],
    "lost": [
        "My letter box is still empty.", "Nobody knows where the parcel went.",
        "The van never stopped at my door.", "I wait for a parcel that does not come.",
    ],
    "missing part": [
        "Two bolts are not in the bag.", "I found no lid in the box.", "One leg was not packed.",
        "The set has five pieces and I got four.",
    ],
    "overcharged": [
        "You took ten more than the offer said.", "My account was debited two times.",
        "I paid the full price in spite of my voucher.", "There are two bills for the same thing.",
    ],
    "scratched": [
        "There are grooves in the paint.", "The varnish has ugly lines in it.",
        "Its lid is all scraped.", "Something sharp has run over the top.",
    ],
    "wrong colour": [
        "I wanted another shade than this.", "It is the right thing, painted wrongly.",
        "The shade is off.", "That shade was never in my basket.",
    ],
    "wrong item": [
        "I unpacked a product I do not know.", "Whoever packed this took the wrong box.",
        "This is what somebody else bought.", "I asked for one thing and got another.",
    ],
    "wrong size": [
        "I could fit in it twice.", "It is a hand too short.",
        "It hangs over the edge on both sides.", "Your chart must be off, it is too narrow.",
    ],
}  # fmt: skip
MOOD_FORMS = {
    "angry": [
        "I am fed up.", "This is outrageous.", "You have cheated me.", "My patience is at an end.",
    ],
    "calm": [
        "There is no need to rush.", "It can wait until next week.", "I am in no hurry.",
        "Any day is fine with me.",
    ],
    "cheerful": [
        "You are a delight.", "I am full of joy anyway.", "Big hugs to you all.",
        "I could sing all day.",
    ],
    "worried": [
        "I have a bad feeling.", "I lie awake because of it.", "I am frightened of what comes.",
        "I tremble at the thought of it.",
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A message, and the record that is the right answer to it."""

    text: str
    right: str


def known_words() -> set[str]:
    """Return every name, town, good and colour of the closed lists: training's and the test's."""
    return {
        *lexicon.FIRST_NAMES, *lexicon.CITIES, *lexicon.ITEM_NOUNS, *lexicon.BASE_COLOURS,
    }  # fmt: skip


def new_case(rng: random.Random, taken: set[str]) -> world.Case:
    """Return a case whose name, town, good and colour are composed and not among those taken."""

    def new(word: str) -> bool:
        return not taken & {word, *word.split()}

    while True:
        name = lexicon.first_name(rng, open_share=1.0)
        if rng.random() < 0.3:
            name = f"{name} {lexicon.last_name(rng)}"
        city, item = lexicon.city(rng, open_share=1.0), lexicon.nonsense_word(rng)
        if rng.random() < 0.3:
            item = f"{rng.choice(lexicon.ITEM_KINDS)} {item}"
        colour = lexicon.nonsense_word(rng)
        if rng.random() < 0.3:
            colour = f"{rng.choice(lexicon.SHADES)} {colour}"
        if all(map(new, (name, city, item, colour))) and item != colour:
            return world.Case(
                name, item, colour, rng.choice(lexicon.DAYS), city,
                rng.choice(lexicon.PROBLEMS), rng.choice(lexicon.MOODS),
            )  # fmt: skip


def reworded(message: world.Message, rng: random.Random) -> str:
    """Return a message's text, half of its sentences on the problem and the mood replaced.

    The other sentences are those of the training split; so are the messages with typos.
    """
    text, case = message.text, message.case
    old_and_new = (
        (world.forms.PROBLEM_FORMS[case.problem], PROBLEM_FORMS[case.problem]),
        (world.forms.MOOD_FORMS[case.mood], MOOD_FORMS[case.mood]),
    )
    for old, new in old_and_new:
        for sentence in old:
            if sentence in text and rng.random() < 0.5:
                text = text.replace(sentence, rng.choice(new))
    return text


def make_questions() -> dict[str, list[Question]]:
    """Return the messages of each split with their right answers; no text is there twice."""
    rng = random.Random(SEED)
    taken = known_words()
    for split in data.load("tickets").values():  # composed words are in no closed list
        for row in split:
            record = json.loads(row["completion"])
            taken |= {record[field] for field in ("name", "city", "item", "colour")}
    found: dict[str, list[Question]] = {}
    texts: set[str] = set()
    for split, size in SIZES.items():
        found[split] = []
        while len(found[split]) < size:
            message = world.write_message(new_case(rng, taken), rng)
            text = reworded(message, rng)
            if text not in texts:
                texts.add(text)
                found[split].append(Question(text, make_datasets.record(message)))
    return found


def as_chat(question: str, answer: str) -> dict[str, list[dict[str, str]]]:
    """Return a row of a conversation with its prompt and its completion apart."""
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
    }


def tuned_model() -> PreTrainedModel:
    """Return the pocket model tuned by lesson 00's recipe, on chats."""
    rows = data.load("tickets", "train", form="messages")
    chats = [as_chat(*(turn["content"] for turn in turns)) for turns in rows["messages"]]
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            AutoModelForCausalLM.from_pretrained(POCKET_MODEL, dtype=torch.float32),
            SFTConfig(
                output_dir=folder, num_train_epochs=1, per_device_train_batch_size=16,
                learning_rate=5e-3, lr_scheduler_type="cosine", warmup_steps=0.05, max_length=320,
                save_strategy="no", bf16=False, use_cpu=True, activation_checkpointing=False,
                report_to="none", disable_tqdm=True, seed=0,
            ),
            train_dataset=Dataset.from_list(chats),
            processing_class=AutoTokenizer.from_pretrained(POCKET_MODEL),
            peft_config=LoraConfig(
                r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer.model.eval()


def sampled(model: PreTrainedModel, texts: Sequence[str]) -> list[list[str]]:
    """Return the answers that are drawn to each message at temperature 1, from all tokens."""
    tokenizer = AutoTokenizer.from_pretrained(POCKET_MODEL)
    chats = [as_chat(text, "")["prompt"] for text in texts]
    ids = tokenizer.apply_chat_template(chats, add_generation_prompt=True)["input_ids"]
    torch.manual_seed(SEED)
    answers: list[list[str]] = [[] for _ in ids]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # little padding
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        rows, mask = padded([ids[i] for i in part], tokenizer.pad_token_id, model.device)
        with torch.inference_mode():
            written = model.generate(
                input_ids=rows, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0,
                num_return_sequences=SAMPLES, max_new_tokens=NEW_TOKENS,
                pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
        said = tokenizer.batch_decode(written[:, rows.shape[1] :], skip_special_tokens=True)
        for place, i in enumerate(part):
            answers[i] = [a.strip() for a in said[place * SAMPLES : (place + 1) * SAMPLES]]
    return answers


def pair(question: Question, greedy: str, drawn: Sequence[str]) -> dict[str, object] | None:
    """Return the pair of a message, or None where every answer was right.

    `chosen` is the right answer. There is only one, so where the model found it, it is the model's
    own: `found` says how ("greedy", "sampled" or "never"). `rejected` is the greedy answer if that
    is wrong, else the wrong one that was drawn most often. `share_right` is that of the samples.
    """
    wrong = Counter(answer for answer in drawn if answer != question.right)
    if greedy == question.right and not wrong:
        return None
    found = "sampled" if question.right in drawn else "never"
    row = as_chat(question.text, question.right)
    rejected = wrong.most_common(1)[0][0] if greedy == question.right else greedy
    return {
        "prompt": row["prompt"],
        "chosen": row["completion"],
        "rejected": [{"role": "assistant", "content": rejected}],
        "found": "greedy" if greedy == question.right else found,
        "share_right": 1 - wrong.total() / len(drawn),
    }


def make_pairs(questions: Sequence[Question], model: PreTrainedModel) -> Iterator[dict]:
    """Yield the pairs of some messages, answered by a model."""
    texts = [question.text for question in questions]
    tokenizer = AutoTokenizer.from_pretrained(POCKET_MODEL)
    chats = [as_chat(text, "")["prompt"] for text in texts]
    greedy = metrics.generate(model, tokenizer, chats, progress=False)
    for question, said, drawn in zip(questions, greedy, sampled(model, texts), strict=True):
        made = pair(question, said, drawn)
        if made is not None:
            yield made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    default = Path(__file__).resolve().parents[1] / "preferences"
    parser.add_argument("--output", type=Path, default=default, help="the folder to write into")
    options = parser.parse_args()
    model = tuned_model()
    options.output.mkdir(parents=True, exist_ok=True)
    for split, questions in make_questions().items():
        rows = list(make_pairs(questions, model))
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_whole(options.output / f"{split}.jsonl", "".join(lines))
        counts = Counter(row["found"] for row in rows)
        print(f"{split}: {len(rows)} pairs of {len(questions)} messages; found: {dict(counts)}")


if __name__ == "__main__":
    main()
