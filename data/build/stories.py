"""Short stories for the pretraining corpus: a plot is a list of steps, a step a choice of sentences."""

from __future__ import annotations

import random

import lexicon

ANIMALS = "badger bear beaver bird cat cow crow deer dog donkey duck eagle fox frog goat goose hare hedgehog hen horse lamb mole mouse otter owl parrot pig pony rabbit raven robin sheep snail sparrow squirrel swan toad turtle wolf".split()
FOODS = "apples beans berries biscuits bread broth butter cabbage carrots cheese cherries chestnuts chocolate cookies corn dumplings eggs fish ginger honey jam lemons lentils melon milk mushrooms noodles nuts oats onions pancakes pasta pears peas pie plums porridge potatoes pudding rice salad sausages soup spinach stew tomatoes waffles walnuts".split()
JOBS = "actor baker barber beekeeper bookseller builder butcher captain carpenter clerk cook dancer dentist doctor driver farmer fireman fisher florist gardener guard guide jeweller judge lawyer librarian mechanic miller miner musician nurse painter pilot plumber poet porter potter printer sailor sculptor shepherd singer smith surgeon tailor teacher vet waiter watchmaker weaver writer".split()
WEATHER = "bright chilly clear cloudy cold dry foggy frosty gloomy hazy hot icy mild misty rainy snowy stormy sunny warm wet windy".split()
PLACES = "attic bakery barn beach bridge castle cave cellar chapel church corner courtyard farm field forest fountain garage garden gate harbour hill inn island kitchen lake library lighthouse market meadow mill museum orchard palace park pier playground pond port quarry river roof school shed shore square stable station street swamp temple theatre tower tunnel valley village well wood workshop yard".split()
HOBBIES = "baking chess climbing cooking cycling dancing drawing fishing gardening hiking juggling knitting painting photography pottery reading rowing running sailing sewing singing skating skiing swimming tennis walking weaving whittling writing yoga".split()
FEELINGS = "amazed brave calm curious delighted eager glad grateful happy hopeful hungry lonely nervous proud puzzled quiet relieved sad shy sleepy surprised thirsty tired".split()

OPENINGS = [
    "{p} was a {job} in {t}.", "In {t} there lived a {job} whose name was {p}.",
    "Once there was a {job} called {p}, and {p} lived in {t}.", "{p} came from {t} and worked as a {job}.",
    "Everybody in {t} knew {p}, the {job}.", "There was a {job} in {t}. People called the {job} {p}.",
]  # fmt: skip

PLOTS = [
    [  # something is lost and found
        ["One {weather} {d} {p} lost {a} {c} {thing} near the {place}.",
         "On a {weather} {d}, {a} {c} {thing} was gone, and {p} was very {feel}.",
         "{p} owned {a} {c} {thing}, but on {d} it could not be found anywhere."],
        ["{p} looked behind the {place}, under the bed and in every pocket.",
         "First {p} searched the {place}, then the whole house.",
         "All morning {p} walked up and down and asked everyone."],
        ["Then {f} came by and offered to help.", "Luckily {f} had sharp eyes.",
         "A friend by the name of {f} joined the search."],
        ["They found it with {an} {animal}, who had carried it away.",
         "It was {an} {animal} that had taken it for a toy.",
         "In the end {f} saw {an} {animal} asleep on top of it."],
        ["{p} felt {feel2} and gave {f} a plate of {food}.", "That evening they ate {food} and laughed.",
         "From then on {p} kept the {thing} on a high shelf."],
    ],
    [  # a meal for a guest
        ["It was {d}, a {weather} one, and {f} was coming to visit.", "{f} had promised to come on {d}.",
         "{p} expected a guest on {d}: {f} from across the {place}."],
        ["So {p} went to the market and bought {food} and {food2}.",
         "There was nothing but {food} at home, so {p} fetched some {food2}.",
         "{p} wanted to make a dish of {food} with {food2}."],
        ["But {an} {animal} got into the kitchen and ate all the {food}.",
         "While the pot was on the fire, {an} {animal} stole the {food2}.",
         "Alas, {an} {animal} knocked the bowl off the table."],
        ["{f} only smiled and brought out {a} {c} {thing} full of bread.",
         "{f} said that it did not matter and opened {a} {c} {thing} with cake inside.",
         "Then {f} gave {p} a present: {a} {c} {thing}."],
        ["They were {feel2} all evening.", "It was the best supper that {p} could remember.",
         "The {animal} was given the crumbs, and all were {feel2}."],
    ],
    [  # a journey
        ["On {d} {p} set out for the {place} to visit {f}.", "One {weather} {d} {p} packed {a} {c} {thing} and left.",
         "{p} had never seen the {place}, so on {d} the journey began."],
        ["The road was long and {weather}.", "Halfway there it turned {weather}, and {p} felt {feel}.",
         "After an hour {p} sat down on a stone and ate some {food}."],
        ["{An} {animal} stood in the way and would not move.", "By the bridge there was {an} {animal} with a hurt leg.",
         "Suddenly {an} {animal} jumped out of the bushes."],
        ["{p} shared the {food} with it, and it followed along.", "{p} spoke to it softly until it stepped aside.",
         "With a rope and the {thing}, {p} helped it on its feet."],
        ["At the {place} {f} was waiting, {feel2} to see them both.", "{f} opened the door and cried: what a sight!",
         "When {f} heard the tale, they both became {feel2}."],
    ],
    [  # something to make
        ["{p} had a plan: to build {a} {c} {thing} out of old boards.", "For weeks {p} worked on {a} {c} {thing}.",
         "{p} wished for {a} {c} {thing} but had no money to buy one."],
        ["{f}, who knew all about {hobby}, lent a hand.", "{f} brought nails, glue and good advice.",
         "On {d} {f} came over to hold the ladder."],
        ["They worked in the {place} until dark.", "It was {weather} outside, so they stayed in the {place}.",
         "The work was hard, but there was {food} at noon."],
        ["When it was done, {an} {animal} made its home in it.", "An hour later {an} {animal} sat on top of it.",
         "Nobody had thought that even {an} {animal} would like it."],
        ["{p} was {feel2} about it.", "Everyone agreed that it was the finest in town.",
         "{f} asked for one just like it."],
    ],
    [  # a contest
        ["Every year there was a contest of {hobby} at the {place}.", "On {d} the town held a contest of {hobby}.",
         "A letter came: {p} was invited to a contest of {hobby}."],
        ["{p} had practised since winter and was {feel}.", "{p} was not sure whether to go, but {f} said yes.",
         "Nobody believed in {p} except {f}."],
        ["The day was {weather}, and a crowd had gathered.", "There were drums, flags and the smell of {food}.",
         "Right at the start {an} {animal} ran across the field."],
        ["{f} came first and {p} came second.", "To everyone's surprise {p} won.", "The prize went to {f}, by a hair."],
        ["The prize was {a} {c} {thing}.", "The winner was given {a} {c} {thing} and a basket of {food}.",
         "They shared the prize, {a} {c} {thing}, and felt {feel2}."],
    ],
]  # fmt: skip


def story(rng: random.Random) -> tuple[str, dict[str, str]]:
    """Return a story of six to eight sentences and what it is about, by name."""
    w = {
        "p": lexicon.person(rng), "f": lexicon.first_name(rng), "t": lexicon.city(rng),
        "thing": lexicon.item(rng), "c": lexicon.colour(rng), "d": rng.choice(lexicon.DAYS),
        "job": rng.choice(JOBS), "animal": rng.choice(ANIMALS), "place": rng.choice(PLACES),
        "weather": rng.choice(WEATHER), "food": rng.choice(FOODS), "food2": rng.choice(FOODS),
        "feel": rng.choice(FEELINGS), "feel2": rng.choice(FEELINGS), "hobby": rng.choice(HOBBIES),
    }  # fmt: skip
    an = "an" if w["animal"][0] in "aeiou" else "a"
    words = w | {"a": "an" if w["c"][0] in "aeiou" else "a", "an": an, "An": an.capitalize()}
    steps = [OPENINGS, *rng.choice(PLOTS)]
    text = " ".join(rng.choice(step) for step in steps).format(**words)
    said = {
        "hero": w["p"], "friend": w["f"], "town": w["t"], "job": w["job"], "thing": w["thing"],
        "colour": w["c"], "day": w["d"], "animal": w["animal"], "place": w["place"], "food": w["food"],
    }  # fmt: skip
    return text, {key: value for key, value in said.items() if value in text}


PERSON_FACTS = [
    ("job", JOBS, ["{name} is a {v}.", "{name} works as a {v}.", "By trade {name} is a {v}."]),
    ("hobby", HOBBIES, ["In the evening {name} enjoys {v}.", "The favourite pastime is {v}.", "{name} loves {v}."]),
    ("pet", ANIMALS, ["A tame {v} lives in the house.", "There is a {v} in the garden.", "{name} keeps a {v}."]),
    ("food", FOODS, ["On Sundays there are {v}.", "Nothing tastes better to {name} than {v}.", "{name} eats a lot of {v}."]),
    ("place", PLACES, ["You will find {name} at the {v}.", "Home is next to the {v}.", "{name} often walks to the {v}."]),
    ("mood", FEELINGS, ["Today {name} is {v}.", "Most people find {name} rather {v}.", "{name} looks {v}."]),
]  # fmt: skip


def portrait(rng: random.Random) -> tuple[str, dict[str, str]]:
    """Return a few sentences about a person and the facts in them."""
    name, town = lexicon.person(rng), lexicon.city(rng)
    facts = {"name": name}
    start = rng.choice(
        [
            "{name} lives in {t}.",
            "This is {name} from {t}.",
            "{name} was born in {t}.",
            "Meet {name} of {t}.",
        ]
    )
    sentences = [start.format(name=name, t=town)]
    facts["city"] = town
    for key, values, wordings in rng.sample(PERSON_FACTS, rng.randint(1, 4)):
        facts[key] = rng.choice(values)
        sentences.append(rng.choice(wordings).format(name=name.split()[0], v=facts[key]))
    return " ".join(sentences), facts
