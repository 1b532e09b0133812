"""The words of the small world: people, towns, goods, colours.

Every list is closed, but names, towns and goods also have an *open tail* that is composed from parts:
a model that can guess a value from a short list never learns to copy it from its context.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

FIRST_NAMES = """
Ada Adrian Agnes Ahmed Aisha Alan Albert Alice Alma Amara Amelia Amir Ana Andre Angela Anita Anton
Arjun Arthur Astrid Aurora Axel Beatrice Bela Ben Bianca Boris Brenda Bruno Camila Carla Carlos
Carmen Cecil Chen Clara Colin Conrad Cora Cyrus Dalia Daniel Daphne David Dennis Diana Diego Dina
Dominic Dora Edgar Edith Eduardo Elena Elias Elif Ella Emil Emma Enzo Erik Esther Eva Fatima Felix
Fiona Flora Frances Frank Freya Gabriel Gemma George Gerda Gina Gloria Grace Greta Gustav Hana
Hanna Harold Harriet Hasan Hazel Hector Heidi Helen Henry Hilda Hugo Ibrahim Ida Ines Ingrid Irene
Iris Isaac Ivan Ivy Jack Jacob Jamal Jana Jasper Jenny Joan Joel Johan Jonas Josef Joyce Judith
Julia Karim Karin Katya Keith Kenji Kira Klaus Lara Lars Laura Leila Lena Leo Leon Lidia Linda Liam
Lola Louis Lucas Lucia Luna Lydia Mabel Magda Malik Marco Margit Maria Marta Martin Mateo Maya Meera
Mia Mina Miriam Mona Morris Nadia Naomi Nathan Nell Nico Nina Noah Nora Olga Oliver Olivia
Omar Oscar Otto Pablo Paula Pedro Petra Philip Pia Priya Quentin Rachel Rafael Ralph Ravi Rebecca
Remy Rita Robert Rosa Ruben Ruth Sadia Salma Samir Samuel Sandra Sara Selma Sergei Silas Simon Sofie
Sonia Stefan Stella Sven Sylvia Tamar Tanya Tara Teresa Theo Thomas Tilda Tobias Tomas Uma Ursula
Valentin Vera Victor Viola Walter Wanda Wendy Wilma Xavier Yara Yasmin Yosef Yuki Yusuf Zara Zelda Zoe
""".split()

FIRST_STARTS = "Al An Ar Be Bri Ca Ce Da De El Em Fa Fe Ga Ha Io Ja Ka Ke La Li Ma Mi Na Ni Ol Pa Ra Ri Ro Sa Se Si Ta Te Va Vi Ya Za".split()
FIRST_ENDS = "bel bert bin da dan dra dric fina gan jan la lan lena lia lina lio lon mina mond na ndro neth nor ra ras ren ria rik rina ro sel sha sta tan thea tin vin wen yan zia".split()

LAST_STARTS = "Acker Ald Ash Bar Beck Berg Black Brad Bran Carl Clay Cole Dahl Dun East Elm Fair Falk Fern Field Gar Gold Gray Green Hal Ham Har Hart Hol Holt Kel Kess Lam Lang Lin Lock Long Mar May Mill Moor Nor North Oak Pen Rad Red Ros Sand Sel Stan Stern Stone Strand Sut Thorn Wal Wells West Whit Wood".split()
LAST_ENDS = "berg bourne by dale den ell er es ford gard ham hoff ing ington ley lund man mann mark more ner quist sen son stad stein stone strom ton well wick worth wood".split()

CITIES = """
Aarhus Aberdeen Accra Adelaide Amman Antwerp Athens Auckland Austin Baltimore Barcelona Basel Bath
Belfast Bergen Berlin Bilbao Bologna Mumbai Bordeaux Boston Bremen Brighton Bristol Brussels
Bucharest Budapest Cairo Calgary Cambridge Cardiff Chester Chicago Cologne Copenhagen Cordoba Cork
Coventry Dakar Dallas Delhi Denver Derby Detroit Dresden Dublin Dundee Durban Durham Edinburgh Exeter
Frankfurt Galway Gdansk Geneva Genoa Ghent Glasgow Gothenburg Granada Graz Halifax Hamburg
Hanover Helsinki Hobart Houston Istanbul Jakarta Kampala Kiel Krakow Kyoto Lagos Lausanne Leeds
Leicester Leipzig Lima Lincoln Linz Lisbon Liverpool Ljubljana London Lyon Madrid Malaga Malmo
Manchester Marseille Melbourne Memphis Montreal Munich Nairobi Nantes Naples Newcastle Nice
Norwich Nottingham Nuremberg Oporto Osaka Oslo Ottawa Oxford Palermo Paris Perth Pisa Plymouth
Portland Prague Quebec Reading Riga Rome Rotterdam Salzburg Seattle Seville Sheffield Siena
Stockholm Stuttgart Swansea Sydney Tallinn Tampere Tokyo Toledo Toronto Toulouse Trieste Tunis Turin
Utrecht Valencia Venice Verona Vienna Vilnius Warsaw Wexford Winchester York Zagreb Zurich
""".split()

TOWN_STARTS = "Alder Apple Ash Bad Barn Birch Bram Bridge Brook Castle Chip Clear Cold Copper Crow Deep Dove Eagle East Fair Farn Fox Glen Gold Grey Hart Hazel High Hunter Iron King Lake Lark Lime Long Maple Marl Mill Moss New North Oak Old Otter Pine Queen Raven Red River Rook Salt Shep Silver South Stone Swan Thorn Wal West White Wick Willow Wind Wolf".split()
TOWN_ENDS = "borough bourne bridge bury by combe dale field ford gate ham haven hill holm hurst land leigh ley mere minster more mouth pool port side stead stoke ton vale view ville water wick wood worth".split()

ITEM_NOUNS = """
alarm apron backpack bag basket bathrobe bed bell belt bench bicycle blanket blender bookcase
bottle bowl bracelet briefcase broom brush bucket cabinet cake-tin calendar camera candle cap
cardigan carpet chair chessboard clock coat coffee-maker comb compass cooler cot cup curtain cushion
desk diary doll doormat drawer dress drill drum dustpan easel fan flask flute frame fridge fryer
globe glue-gun guitar hammer hammock handbag hat heater helmet hoodie iron jacket
jar jug juicer jumper kettle keyboard kite knife ladder lamp lantern laptop-stand lunchbox mattress
microscope mirror mixer monitor mug necklace notebook oven padlock paintbox pan parasol pen
phone piano-stool picnic-rug pillow pitcher plate poster pot printer projector puzzle quilt racket
radio raincoat razor ring router rucksack rug ruler saddle saw scarf scooter sewing-kit
sheet shelf shirt skateboard skirt sleeping-bag slippers sofa speaker spoon stapler stool
suitcase sweater table tablecloth tap tea-set teapot telescope tent thermos tie toaster
torch towel toy train-set tray tripod trumpet umbrella vacuum vase violin waistcoat wallet
wardrobe watch whistle wok wreath
""".split()
ITEM_NOUNS = [noun.replace("-", " ") for noun in ITEM_NOUNS]

ITEM_KINDS = "beach camping children's city cotton electric folding garden glass kitchen leather metal office outdoor pocket steel summer table travel vintage winter wooden woollen".split()

BASE_COLOURS = "amber beige black blue bronze brown copper coral cream crimson cyan gold green grey indigo ivory khaki lavender lilac lime magenta maroon mint mustard navy ochre olive orange peach pink plum purple red rose ruby rust sand scarlet silver teal turquoise violet white yellow".split()
SHADES = "dark light pale bright deep dusty soft".split()

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December".split()
)

PROBLEMS = (
    "broken", "faulty", "late", "lost", "missing part",
    "overcharged", "scratched", "wrong colour", "wrong item", "wrong size",
)  # fmt: skip
MOODS = ("angry", "calm", "cheerful", "worried")

CONSONANTS = "b c d f g h j k l m n p r s t v w z br cr dr gr pl st tr sh".split()
VOWELS = "a e i o u ai ea ou".split()
CODAS = ["", "n", "r", "l", "s", "t", "m", "ck", "nd"]


def compose(rng: random.Random, starts: Sequence[str], ends: Sequence[str]) -> str:
    """Return one word of the open tail: a start and an end, without a letter three times in a row."""
    start, end = rng.choice(starts), rng.choice(ends)
    return start + (end[1:] if start[-2:] == end[0] * 2 or start[-1] == end[0] else end)


def nonsense_word(rng: random.Random) -> str:
    """Return a pronounceable word that means nothing: it can only be copied, never guessed."""
    syllables = (rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(rng.randint(1, 3)))
    return "".join(syllables) + rng.choice(CODAS)


def first_name(rng: random.Random, open_share: float = 0.3) -> str:
    """Return a first name; a share of them is composed."""
    if rng.random() < open_share:
        return compose(rng, FIRST_STARTS, FIRST_ENDS)
    return rng.choice(FIRST_NAMES)


def last_name(rng: random.Random) -> str:
    """Return a composed family name."""
    return compose(rng, LAST_STARTS, LAST_ENDS)


def person(rng: random.Random, open_share: float = 0.3) -> str:
    """Return a first name, in one case of three with a family name."""
    first = first_name(rng, open_share)
    return f"{first} {last_name(rng)}" if rng.random() < 0.33 else first


def city(rng: random.Random, open_share: float = 0.4) -> str:
    """Return a town; a share of them is composed."""
    if rng.random() < open_share:
        return compose(rng, TOWN_STARTS, TOWN_ENDS)
    return rng.choice(CITIES)


def item(rng: random.Random) -> str:
    """Return a thing that the shop sells, in one case of three with its kind."""
    noun = rng.choice(ITEM_NOUNS)
    return f"{rng.choice(ITEM_KINDS)} {noun}" if rng.random() < 0.33 else noun


def colour(rng: random.Random) -> str:
    """Return a colour, in one case of three with its shade."""
    base = rng.choice(BASE_COLOURS)
    return f"{rng.choice(SHADES)} {base}" if rng.random() < 0.33 else base
