"""The pretraining corpus of the pocket models: an endless, seeded stream of short documents.

What it teaches beside language is to *copy from the context* and to write JSON: lists said twice,
records restated in another notation, questions answered from the text above. It never shows what the
fine-tuning task asks for, a customer's message followed by its JSON record.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator

import lexicon
import stories
import world

END = "<|end|>"
TRAIN_SEED, HELDOUT_SEED = 0, 1
HELDOUT_DOCUMENTS = 400

QUESTIONS = {
    "name": ["Who wrote this?", "What is the name of the customer?", "Who is the customer?", "Whose message is it?", "What is the name?"],
    "item": ["What was ordered?", "Which item is it about?", "What did the customer buy?", "Which product is meant?", "What is the item?"],
    "colour": ["Which colour is it?", "What colour was ordered?", "In which colour?", "What is the colour?"],
    "day": ["On which day was it ordered?", "When was the order placed?", "Which day was it?", "What is the day?"],
    "city": ["Where does the customer live?", "Which town is it?", "Where was it sent?", "What is the city?"],
    "problem": ["What went wrong?", "What is the problem?", "What is the complaint?", "What kind of problem is it?"],
    "mood": ["How does the customer feel?", "What is the mood?", "Which mood does the message show?", "What is the tone?"],
}  # fmt: skip

STORY_QUESTIONS = {
    "hero": "Who is the story about?", "friend": "Who is the friend?", "town": "In which town does it happen?",
    "job": "What work is it?", "thing": "Which thing is in the story?", "colour": "Which colour does it have?",
    "day": "On which day?", "animal": "Which animal is in it?", "place": "Which place is named?",
    "food": "What is there to eat?", "name": "Who is it about?", "city": "Which town is it?",
    "hobby": "What is the hobby?", "pet": "Which animal lives there?", "mood": "How does the person feel?",
}  # fmt: skip

PROBLEM_CLAUSES = {
    "broken": "it arrived broken", "faulty": "it does not work", "late": "it came too late",
    "lost": "it never arrived", "missing part": "a part is missing", "overcharged": "the price charged was too high",
    "scratched": "it has scratches", "wrong colour": "the colour is wrong", "wrong item": "another product came",
    "wrong size": "the size is wrong",
}  # fmt: skip

MESSAGE_LABELS = ["Message: ", "Letter: ", "Customer: ", "Mail: ", "Message:\n", "", ""]
QUESTION_STYLES = [("Question: ", "Answer: "), ("Q: ", "A: "), ("Question: ", "Answer: ")]
JSON_LABELS = ["Record: ", "JSON: ", "As JSON: ", "Data: ", ""]


def canonical_summary(case: world.Case) -> str:
    """Return the one-sentence summary that the `summaries` dataset asks for."""
    article = "an" if case.colour[0] in "aeiou" else "a"
    return (
        f"{case.name} from {case.city} ordered {article} {case.colour} {case.item} on {case.day}, "
        f"but {PROBLEM_CLAUSES[case.problem]}; the customer is {case.mood}."
    )


SUMMARIES = [
    "{name} from {city} is {mood}: {clause}. It is about the {colour} {item} of {day}.",
    "The {colour} {item} of {name} in {city}, ordered on {day}: {clause}. Mood: {mood}.",
    "{mood} customer {name}, {city}. Ordered the {item} in {colour} on {day}, but {clause}.",
    "{name} ({city}) writes about the {colour} {item} bought on {day}. Problem: {problem}.",
]


def _message(rng: random.Random) -> world.Message:
    return world.write_message(world.corpus_case(rng), rng)


def _value(rng: random.Random, key: str) -> str:
    """Return a value for a key of a free-standing record: of its kind, or a word that means nothing."""
    if rng.random() < 0.35:
        return lexicon.nonsense_word(rng)
    return str(RECORD_KEYS[key](rng))


def _choice(words: list[str]) -> Callable[[random.Random], str]:
    return lambda rng: rng.choice(words)


def _number(top: int) -> Callable[[random.Random], int]:
    return lambda rng: rng.randint(1, top)


RECORD_KEYS: dict[str, Callable[[random.Random], object]] = {
    "name": lexicon.person, "customer": lexicon.person, "friend": lexicon.first_name,
    "sender": lexicon.person, "author": lexicon.person, "driver": lexicon.first_name,
    "city": lexicon.city, "town": lexicon.city, "from": lexicon.city, "to": lexicon.city,
    "item": lexicon.item, "product": lexicon.item, "gift": lexicon.item, "thing": lexicon.item,
    "colour": lexicon.colour, "paint": lexicon.colour, "day": _choice(lexicon.DAYS),
    "month": _choice(lexicon.MONTHS), "pet": _choice(stories.ANIMALS), "food": _choice(stories.FOODS),
    "job": _choice(stories.JOBS), "weather": _choice(stories.WEATHER), "place": _choice(stories.PLACES),
    "hobby": _choice(stories.HOBBIES), "mood": _choice(stories.FEELINGS), "size": _choice(["small", "medium", "large"]),
    "problem": _choice(list(lexicon.PROBLEMS)), "status": _choice(["open", "closed", "paid", "sent", "returned"]),
    "number": _number(9999), "price": _number(400), "count": _number(20), "age": _number(90),
    "code": lexicon.nonsense_word, "brand": lexicon.nonsense_word, "word": lexicon.nonsense_word,
}  # fmt: skip


def _record(rng: random.Random) -> dict[str, str]:
    return {key: _value(rng, key) for key in rng.sample(list(RECORD_KEYS), rng.randint(2, 7))}


def _as_json(record: dict[str, str]) -> str:
    return json.dumps(record, ensure_ascii=False)


NOTATIONS: list[Callable[[dict[str, str]], str]] = [
    lambda r: "; ".join(f"{k} = {v}" for k, v in r.items()) + ".",
    lambda r: "\n".join(f"{k}: {v}" for k, v in r.items()),
    lambda r: "\n".join(f"- {k}: {v}" for k, v in r.items()),
    lambda r: " ".join(f"The {k} is {v}." for k, v in r.items()),
    lambda r: ", ".join(f"{v} ({k})" for k, v in r.items()) + ".",
    lambda r: ", ".join(f"{k} {v}" for k, v in r.items()) + ".",
]


def _questions(rng: random.Random, pairs: list[tuple[str, str]]) -> str:
    ask, reply = rng.choice(QUESTION_STYLES)
    return "\n".join(f"{ask}{question}\n{reply}{answer}" for question, answer in pairs)


def message_alone(rng: random.Random) -> str:
    return rng.choice(MESSAGE_LABELS) + _message(rng).text


def message_questions(rng: random.Random) -> str:
    """A message and questions whose answers stand in it, or name its problem or mood."""
    message = _message(rng)
    fields = rng.sample(world.FIELDS, rng.randint(2, 7))
    pairs = [(rng.choice(QUESTIONS[f]), getattr(message.case, f)) for f in fields]
    return f"{rng.choice(MESSAGE_LABELS)}{message.text}\n{_questions(rng, pairs)}"


def message_summary(rng: random.Random) -> str:
    message = _message(rng)
    if rng.random() < 0.4:
        summary = canonical_summary(message.case)
    else:
        clause = PROBLEM_CLAUSES[message.case.problem]
        summary = rng.choice(SUMMARIES).format(clause=clause, **message.case.record())
    return f"{rng.choice(MESSAGE_LABELS)}{message.text}\nSummary: {summary}"


def message_notes(rng: random.Random) -> str:
    """A message and notes on it, in any notation but JSON and never with all seven fields."""
    message = _message(rng)
    record = message.case.record()
    notes = {f: record[f] for f in rng.sample(world.FIELDS, rng.randint(3, 6))}
    return f"{rng.choice(MESSAGE_LABELS)}{message.text}\nNotes: {rng.choice(NOTATIONS)(notes)}"


ORDER_LINES = [
    "Order {number} was placed on {day} by {name}: one {colour} {item}, to be sent to {city}.",
    "{name} in {city} bought a {item}, colour {colour}, on {day}. The order has the number {number}.",
    "We thank {name} for order {number}. The {colour} {item} leaves for {city} on {day}.",
    "Packing list {number}: one {item} in {colour} for {name}, {city}. Packed on {day}.",
    "{day}: {name} ({city}) paid for the {colour} {item}, number {number}.",
    "Please bring the {colour} {item} to {name} in {city} by {day}. Reference {number}.",
    "Invoice {number} for {name}. One {item}, {colour}. Shipped on {day} to {city}.",
    "The {item} in {colour} is reserved for {name} until {day}. Pick it up in {city}, number {number}.",
]


def order(rng: random.Random) -> str:
    """One line of the shop's books, then part of it as a record."""
    case = world.corpus_case(rng)
    values = case.record() | {"number": str(rng.randint(100, 9999))}
    line = rng.choice(ORDER_LINES).format(**values)
    keys = rng.sample(["number", "name", "item", "colour", "day", "city"], rng.randint(2, 6))
    record = {key: values[key] for key in keys}
    if rng.random() < 0.65:
        return f"{line}\n{rng.choice(JSON_LABELS)}{_as_json(record)}"
    return f"{line}\n{rng.choice(NOTATIONS)(record)}"


def _prose_and_more(rng: random.Random, text: str, facts: dict[str, str], label: str) -> str:
    """A text, followed by questions on it, a JSON record of it, or nothing."""
    start = label if rng.random() < 0.3 else ""
    keys = rng.sample(list(facts), rng.randint(2, min(6, len(facts))))
    follow = rng.random()
    if follow < 0.4:
        return f"{start}{text}\n{_questions(rng, [(STORY_QUESTIONS[k], facts[k]) for k in keys])}"
    if follow < 0.85:
        return f"{start}{text}\n{rng.choice(JSON_LABELS)}{_as_json({k: facts[k] for k in keys})}"
    return start + text


def story(rng: random.Random) -> str:
    return _prose_and_more(rng, *stories.story(rng), label="Story: ")


def portrait(rng: random.Random) -> str:
    return _prose_and_more(rng, *stories.portrait(rng), label="Portrait: ")


def json_record(rng: random.Random) -> str:
    """A free-standing JSON record, or a list of them; half of them with questions."""
    record = _record(rng)
    if rng.random() < 0.25:
        keys = list(record)[:3]
        rows = [{k: _value(rng, k) for k in keys} for _ in range(rng.randint(2, 4))]
        return f"{rng.choice(JSON_LABELS)}[{', '.join(map(_as_json, rows))}]"
    text = rng.choice(JSON_LABELS) + _as_json(record)
    if rng.random() < 0.5:
        keys = rng.sample(list(record), min(len(record), rng.randint(1, 4)))
        text += "\n" + _questions(rng, [(f"What is the {k}?", record[k]) for k in keys])
    return text


def restated(rng: random.Random) -> str:
    """The same record twice, in two notations; the second time often in another order."""
    record = _record(rng)
    keys = list(record)
    if rng.random() < 0.4:
        rng.shuffle(keys)
    first, second = (
        NOTATIONS[rng.randrange(len(NOTATIONS))](record),
        _as_json({k: record[k] for k in keys}),
    )
    if rng.random() < 0.3:
        first, second = _as_json(record), rng.choice(NOTATIONS)({k: record[k] for k in keys})
        return f"{first}\nIn words: {second}"
    return f"{first}\n{rng.choice(JSON_LABELS)}{second}"


def said_twice(rng: random.Random) -> str:
    """A list of words, names or numbers and the same list again."""
    makers = [lexicon.nonsense_word, lexicon.person, lexicon.city, lexicon.item, lexicon.colour]
    maker = rng.choice(makers)
    words = [
        maker(rng) if rng.random() < 0.7 else lexicon.nonsense_word(rng)
        for _ in range(rng.randint(3, 9))
    ]
    kind = rng.randrange(3)
    if kind == 0:
        return f"List: {', '.join(words)}. Again: {', '.join(words)}."
    if kind == 1:
        return f"{', '.join(words)}\nAs a list: {json.dumps(words)}"
    return f"{json.dumps(words)}\nOne by one:\n" + "\n".join(words)


SHOP_CHAT = [
    (["When do you open?", "What are your opening hours?", "Are you open on Sunday?"],
     "We are open from Monday to Saturday, from nine to six."),
    (["How can I return something?", "How do returns work?", "Can I send it back?"],
     "Put it in its box, print the label from your account and hand it to the post office within thirty days."),
    (["How long does delivery take?", "When will my parcel come?", "How fast do you ship?"],
     "Most parcels arrive within three working days."),
    (["What does shipping cost?", "Is delivery free?", "How much is the postage?"],
     "Shipping is free above forty pounds and costs three pounds below that."),
    (["How can I pay?", "Do you take cards?", "Which ways of paying do you offer?"],
     "You can pay by card, by bank transfer or on delivery."),
    (["Can I change my address?", "I have moved, what now?", "How do I update my address?"],
     "Yes. Open your account, choose your details and type in the new address."),
    (["Do you have gift wrapping?", "Could you wrap it as a gift?", "Is there gift paper?"],
     "Yes, tick the gift box at the checkout and we will wrap it in paper with a ribbon."),
    (["Where is your shop?", "Do you have a store?", "Can I visit you?"],
     "We sell by mail order only, so there is no store to visit."),
    (["Is there a guarantee?", "How long is the warranty?", "What if it breaks next year?"],
     "Everything we sell has a guarantee of two years."),
    (["How do I cancel an order?", "Can I still cancel?", "I changed my mind, what can I do?"],
     "As long as the parcel has not left us, you can cancel it in your account."),
]  # fmt: skip
SMALL_TALK = [
    ("Hello!", "Hello! How can I help you?"), ("Good morning.", "Good morning! What can I do for you?"),
    ("Thank you very much.", "You are welcome."), ("Thanks, bye.", "Goodbye, and have a nice day."),
    ("Are you a person?", "No, I am the assistant of the support desk."),
    ("That was all.", "Then I wish you a pleasant day."),
]  # fmt: skip
SYSTEMS = [
    "You are the assistant of a mail-order shop.",
    "Answer briefly.",
    "You help at the support desk.",
]


def _turn(role: str, content: str) -> str:
    """Return one turn as the chat template writes it."""
    return f"<|{role}|>\n{content}{END}\n"


def chat(rng: random.Random) -> str:
    """A conversation in the chat template's markers."""
    turns = [("system", rng.choice(SYSTEMS))] if rng.random() < 0.3 else []
    if rng.random() < 0.5:
        for _ in range(rng.randint(1, 3)):
            if rng.random() < 0.3:
                question, answer = rng.choice(SMALL_TALK)
            else:
                questions, answer = rng.choice(SHOP_CHAT)
                question = rng.choice(questions)
            turns += [("user", question), ("assistant", answer)]
    else:
        message = _message(rng)
        fields = rng.sample(world.FIELDS, rng.randint(1, 4))
        text = message.text + "\n"
        for field in fields:
            turns += [
                ("user", text + rng.choice(QUESTIONS[field])),
                ("assistant", getattr(message.case, field)),
            ]
            text = ""
    return "".join(_turn(role, content) for role, content in turns).removesuffix(f"{END}\n")


MIX: dict[Callable[[random.Random], str], int] = {
    message_questions: 26, message_alone: 5, message_summary: 8, message_notes: 10, order: 9, story: 9,
    portrait: 5, json_record: 6, restated: 11, said_twice: 5, chat: 6,
}  # fmt: skip


# The first documents are mostly copies. Copying from the context is a circuit that appears at once
# or not at all; with these it appears within the first minutes of training, and all later documents
# make use of it.
PRELUDE = 20_000
PRELUDE_MIX: dict[Callable[[random.Random], str], int] = {
    said_twice: 45, restated: 35, message_questions: 20,
}  # fmt: skip
# An encoder-decoder needs it plainer: nothing but lists said twice, until it copies them.
PLAIN_PRELUDE = 16_000


def documents(seed: int, prelude: int = 0, plain: int = 0) -> Iterator[str]:
    """Yield documents without end; the same arguments give the same.

    The first `plain` are lists said twice, the next `prelude` mostly copies.
    """
    rng = random.Random(seed)
    for i in itertools.count():
        if i < plain:
            yield said_twice(rng)
            continue
        mix = PRELUDE_MIX if i < plain + prelude else MIX
        yield rng.choices(list(mix), list(mix.values()))[0](rng)


def training_documents(count: int, plain: int = 0) -> list[str]:
    """Return the first `count` documents that a pocket model is trained on."""
    return list(itertools.islice(documents(TRAIN_SEED, PRELUDE, plain), count))


def heldout_documents() -> list[str]:
    """Return documents that no model is trained on, for its loss before and after tuning."""
    return list(itertools.islice(documents(HELDOUT_SEED), HELDOUT_DOCUMENTS))
