# ruff: noqa: E501, SIM905, RUF005 - tables of words and phrasings, easier to read and extend as long lines
"""Word lists of the small world, and the split that keeps part of every list away from training."""

from __future__ import annotations

import functools
import hashlib
import re
from random import Random

NAMES = (
    "Anna Ben Clara David Emma Felix Greta Hugo Ida Jonas Katja Leo Mia Noah Olga Paul Rosa Simon Tina Viktor Wendy Yusuf Zoe "
    "Alice Bob Carol Dan Eve Frank Grace Heidi Ivan Judy Kevin Laura Mike Nina Oscar Peter Quinn Rachel Sam Tom Ursula Vera Walter "
    "Adam Bella Cora Dario Elena Fatima Gabriel Hana Ines Jakob Kira Lars Maria Nadia Omar Priya Ravi Sara Tariq Uma Vikram Wei Ximena "
    "Yara Zane Aisha Bruno Chen Diego Erik Freya Goran Hiro Ingrid Jun Kofi Lena Mateo Naomi Otto Pedro Rania Sven Tomas Ulrich Valentina "
    "Wanda Yuki Zara Arthur Beatrice Cedric Delia Edgar Fiona Georg Hannah Isaac Julia Karl Linda Marcus Nora Oliver Paula Robert Sophie "
    "Theo Viola William Agnes Boris Camila Dora Emil Flora Gustav Helena Igor Johanna Klaus Lucia Martin Natasha Oleg Petra Rita Stefan "
    "Teresa Vanessa Wolfgang Amara Bilal Chloe Dmitri Esra Farid Gloria Hassan Iris Jamal Keiko Luca Mira Nikolai Olivia Pavel Rosalind "
    "Samir Tamara Umberto Veronika Xavier Yvonne Zeynep Alex Chris Jordan Taylor Morgan Robin Casey Jamie Riley Max Lukas Finn Lily James "
    "John Mary Michael Jennifer Elizabeth Barbara Susan Jessica Karen Nancy Lisa Betty Margaret Sandra Ashley Emily Donna Michelle Amanda"
).split()

CITIES = (
    "Paris London Berlin Madrid Rome Vienna Prague Warsaw Lisbon Dublin Athens Oslo Stockholm Helsinki Copenhagen Brussels Amsterdam "
    "Zurich Geneva Munich Hamburg Cologne Frankfurt Leipzig Dresden Milan Naples Turin Venice Florence Barcelona Seville Valencia Porto "
    "Lyon Marseille Nice Bordeaux Lille Manchester Liverpool Leeds Bristol Glasgow Edinburgh Cardiff Belfast Cork Krakow Gdansk Brno "
    "Budapest Bucharest Sofia Belgrade Zagreb Sarajevo Tirana Kyiv Odesa Riga Vilnius Tallinn Minsk Istanbul Ankara Izmir Cairo Tunis "
    "Algiers Rabat Casablanca Lagos Accra Dakar Nairobi Kampala Lusaka Harare Durban Pretoria Tokyo Osaka Kyoto Nagoya Sapporo Seoul "
    "Busan Beijing Shanghai Shenzhen Chengdu Taipei Manila Jakarta Bangkok Hanoi Singapore Delhi Mumbai Chennai Kolkata Bangalore Pune "
    "Karachi Lahore Dhaka Kathmandu Colombo Tehran Baghdad Riyadh Dubai Doha Muscat Amman Beirut Sydney Melbourne Brisbane Perth Adelaide "
    "Auckland Wellington Toronto Montreal Vancouver Ottawa Calgary Boston Chicago Seattle Denver Dallas Houston Austin Miami Atlanta "
    "Phoenix Portland Detroit Memphis Nashville Havana Lima Bogota Quito Caracas Santiago Montevideo Asuncion Brasilia Recife Salvador"
).split() + ["New York", "Los Angeles", "San Francisco", "Buenos Aires", "Mexico City", "Cape Town", "Hong Kong", "Tel Aviv",
             "Addis Ababa", "Kuala Lumpur", "Rio de Janeiro", "San Diego", "Las Vegas", "Salt Lake City", "Sao Paulo", "La Paz"]  # fmt: skip

NOUNS = (
    "lamp table chair door window garden river mountain bridge tower castle ship boat train car bicycle wagon wheel engine rocket kite "
    "ball drum flute violin guitar piano bell clock watch mirror candle lantern box basket bag bottle cup plate spoon fork knife bowl "
    "kettle oven stove carpet curtain pillow blanket bed shelf desk drawer cabinet closet key lock chain rope ladder hammer saw nail "
    "screw shovel rake bucket broom brush paint paper pencil pen book letter stamp map globe compass telescope camera radio phone screen "
    "robot statue fountain park forest field meadow hill valley cave lake pond ocean island beach desert road path street market shop "
    "bakery school library museum station airport harbor hospital church temple farm barn mill fence gate roof wall floor stair cellar "
    "attic balcony tree flower leaf root seed branch rose tulip daisy oak pine apple pear plum cherry lemon orange banana grape melon "
    "peach tomato potato carrot onion garlic pepper bean corn rice bread butter cheese milk egg honey sugar salt soup salad cake cookie "
    "coffee tea juice cat dog horse cow sheep goat pig hen duck goose rabbit mouse fox wolf bear deer lion tiger elephant monkey camel "
    "zebra giraffe whale shark dolphin seal crab turtle frog snake lizard spider ant bee butterfly owl eagle hawk raven sparrow swan "
    "coat hat scarf glove boot shoe sock shirt dress belt ring necklace crown coin purse wallet ticket ball puzzle doll puppet "
    "sun moon star cloud rain snow storm wind fog thunder rainbow stone rock sand clay iron copper silver gold crystal diamond glass "
    "server printer laptop tablet cable battery sensor magnet mug tent raft canoe sled anchor sail flag banner trophy medal shield sword "
    "arrow bow helmet vase jar barrel crate pallet parcel envelope folder notebook ruler eraser scissors needle thread button zipper"
).split()
NOUNS = list(dict.fromkeys(NOUNS))

ADJECTIVES = (
    "red blue green yellow white black brown grey purple pink golden silver old new small big tall short long wide narrow heavy light "
    "bright dark quiet loud fast slow warm cold hot cool soft hard smooth rough clean dusty wet dry round square flat sharp blunt empty "
    "full open closed hidden secret broken shiny plain fancy cheap precious strange simple modern ancient wooden metal plastic paper "
    "northern southern eastern western lucky lonely happy sad brave shy clever gentle wild tame fresh rusty spare main second third last "
    "foggy sunny sleepy hungry thirsty noisy curious crooked striped spotted tiny huge massive delicate fragile sturdy hollow solid"
).split()

COLOURS = "red blue green yellow white black brown grey purple pink orange turquoise violet gold silver beige".split()
FOODS = (
    "pizza pasta rice soup salad sushi curry bread cheese chocolate pancakes apples noodles tacos dumplings lasagna falafel "
    "hummus waffles strawberries potatoes risotto burritos ramen omelettes porridge mangoes cherries"
).split()
HOBBIES = (
    "chess swimming reading painting cooking hiking dancing singing cycling gardening climbing fishing photography "
    "knitting running skiing sailing drawing yoga pottery astronomy archery baking surfing"
).split()
JOBS = (
    "teacher nurse doctor pilot baker farmer painter writer engineer carpenter lawyer gardener driver cook student "
    "programmer plumber electrician librarian architect musician dentist tailor firefighter scientist designer"
).split()
PETS = "cat dog rabbit hamster parrot horse turtle goldfish lizard mouse".split()
MONTHS = "January February March April May June July August September October November December".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
VERBS_PAST = (
    "found carried painted repaired watched moved washed opened closed lifted sold bought borrowed dropped kept liked "
    "admired cleaned described followed forgot measured needed noticed passed photographed polished pulled pushed saw "
    "searched shared showed touched visited wanted wrapped drew praised guarded"
).split()
PLACES = (
    "in the garden|near the river|at the station|behind the house|on the hill|under the bridge|in the library|by the sea|"
    "at the market|in the cellar|on the roof|next to the mill|in the old town|at the harbor|in the forest|across the street|"
    "in the kitchen|beside the lake|at the museum|inside the tower|in the valley|along the road|at school|in the workshop"
).split("|")
TIMES = (
    "in the morning|at noon|in the evening|at night|on Monday|on Tuesday|on Friday|last week|last summer|yesterday|"
    "two days ago|in spring|in winter|before breakfast|after lunch|during the storm|at sunrise|every day|once a year|today"
).split("|")

_ONSETS = "b br c ch d dr f fl g gr h j k kl l m n p pr qu r s sh sk st t th tr v w z".split()
_VOWELS = "a e i o u ai ea ee ia oo ou".split()
_CODAS = ["", "", "", "l", "m", "n", "r", "s", "t", "x", "nd", "rk", "sh", "ck"]


def held_out(kind: str, key: str, share: float = 0.15) -> bool:
    """Whether `key` of `kind` is kept for evaluation. A hash decides, so it is the same for every seed and process."""
    digest = hashlib.sha256(f"{kind}\0{key}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


class Lists:
    """The word lists as one split sees them: `train` gets what is not held out, `heldout` only what is."""

    def __init__(self, split: str) -> None:
        if split not in ("train", "heldout"):
            raise ValueError(f"split: {split!r} is not 'train' or 'heldout'")
        self.split = split
        self.names = self._side("name", NAMES)
        self.cities = self._side("city", CITIES)

    def _side(self, kind: str, items: list[str]) -> list[str]:
        return [item for item in items if self.allows(kind, item)]

    def allows(self, kind: str, key: str, share: float = 0.15) -> bool:
        """Whether this split may use `key`."""
        return held_out(kind, key, share) == (self.split == "heldout")

    def name(self, rng: Random) -> str:
        """A first name; in training a third are invented, so that names are copied rather than known."""
        if self.split == "train" and rng.random() < 0.35:
            return invented(rng).capitalize()
        return rng.choice(self.names)

    def city(self, rng: Random) -> str:
        """A city; in training a third are invented."""
        if self.split == "train" and rng.random() < 0.35:
            return invented(rng).capitalize()
        return rng.choice(self.cities)

    def thing(self, rng: Random) -> str:
        """An adjective and a noun, such as "rusty kettle"; a tenth of the pairs is held out."""
        while True:
            thing = f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"
            if self.allows("thing", thing, 0.1):
                return thing


def with_article(word: str) -> str:
    """ "an owl", "a dog"."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _followers() -> dict[str, str]:
    """For two letters, the letters that follow them in the training side of the lists (with repetitions)."""
    followers: dict[str, str] = {}
    lists = Lists("train")
    for word in (*lists.names, *lists.cities, *NOUNS, *ADJECTIVES, *HOBBIES, *JOBS, *FOODS, *PLACES, *VERBS_PAST):
        for part in word.lower().split():
            padded = f"^^{part}$"
            for at in range(len(padded) - 2):
                followers[padded[at : at + 2]] = followers.get(padded[at : at + 2], "") + padded[at + 2]
    return followers


@functools.cache
def world_phrases() -> tuple[str, ...]:
    """Every phrase that the small world is made of, without those kept for evaluation."""
    from recipe import facts, simple, talk, tools

    phrases: list[str] = [talk.DONT_KNOW, *simple.COPY, *simple.ADD[:-1], *simple.SUB[:-1], *NOUNS, *ADJECTIVES, *JOBS, *HOBBIES, *FOODS]
    for questions, answers in talk.INTENTS.values():
        phrases += [*questions[:-1], *answers]
    for attribute in talk.ATTRIBUTES:
        phrases += [*attribute.tell[:-1], *attribute.ask[:-1], attribute.confirm, attribute.recall, attribute.missing]
    for relation in facts.RELATIONS:
        phrases += [*relation.questions[: -relation.num_unseen], relation.answer, *relation.table, *relation.table.values()]
    phrases += [*tools.WEATHER[:-1], *tools.CALCULATE[:-1], *tools.SEARCH[:-1], str(tools.EXAMPLE_TOOLS)]
    phrases += [*VERBS_PAST, *PLACES, *TIMES, *MONTHS, *DAYS, "Celsius Fahrenheit rainy foggy cloudy temperature condition results snippet"]
    lists = Lists("train")
    phrases += [*lists.names, *lists.cities]
    return tuple(re.sub(r"\{\w\}", "it", phrase) for phrase in phrases)


@functools.cache
def world_words() -> tuple[str, ...]:
    """The different words of the phrases."""
    return tuple(dict.fromkeys(re.findall(r"[^\W\d_]+", " ".join(world_phrases()))))


def invented(rng: Random) -> str:
    """A made-up word, lower case: of syllables, of letters that follow each other as in real words, of parts of the
    words of the small world, or of any letters.

    What is copied must not be known by heart: every piece of the vocabulary has to turn up in made-up words.
    """
    kind = rng.random()
    if kind < 0.2:
        return "".join(
            rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.choice((1, 2, 2, 2, 3)))
        )
    if kind < 0.6:
        while True:
            word = "^^"
            while word[-1] != "$" and len(word) < 14:
                word += rng.choice(_FOLLOWERS[word[-2:]])
            word = word[2:].rstrip("$")
            if len(word) > 2:
                return word
    if kind < 0.92:
        parts = []
        for _ in range(rng.choice((1, 2, 2, 3))):
            whole = rng.choice(world_words())
            start = rng.choice((0, 0, rng.randrange(len(whole))))
            parts.append(whole[start : start + rng.randrange(2, 8)])
        word = "".join(parts).lower()
        if len(word) > 2:
            return word
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randrange(3, 8)))


def code(rng: Random) -> str:
    """A code of three to six digits, now and then with letters."""
    if rng.random() < 0.15:
        return "".join(rng.choice("ABCDEFGHKLMNPRSTUVWXYZ") for _ in range(2)) + "-" + str(rng.randrange(100, 9999))
    return "".join(rng.choice("0123456789") for _ in range(rng.choice((3, 4, 4, 4, 4, 5, 6))))


def sentence(rng: Random, lists: Lists) -> str:
    """A harmless sentence, used as filler. It never states a code."""
    kind = rng.randrange(6)
    adjective, noun = rng.choice(ADJECTIVES), rng.choice(NOUNS)
    if kind == 0:
        return f"{lists.name(rng)} {rng.choice(VERBS_PAST)} the {adjective} {noun} {rng.choice(PLACES)}."
    if kind == 1:
        return f"The {adjective} {noun} was {rng.choice(PLACES)} {rng.choice(TIMES)}."
    if kind == 2:
        time = rng.choice(TIMES)
        return f"{time[0].upper()}{time[1:]}, {lists.name(rng)} {rng.choice(VERBS_PAST)} {with_article(noun)}."
    if kind == 3:
        return f"There is {with_article(adjective)} {noun} {rng.choice(PLACES)}."
    if kind == 4:
        return f"Nobody {rng.choice(VERBS_PAST)} the {noun} {rng.choice(TIMES)}."
    return f"{lists.name(rng)} and {lists.name(rng)} {rng.choice(VERBS_PAST)} the {noun} of {lists.city(rng)}."


_POLITE = (
    "Please tell me: ", "Can you tell me: ", "I want to know: ", "Do you know: ", "One question: ", "Tell me: ", "Please look up: ",
    "Could you say: ", "I would like to know: ", "Now tell me, ", "Look it up: ", "And ", "OK, ", "So ", "Please, ",
)  # fmt: skip


def politely(rng: Random, question: str, split: str) -> str:
    """In training a fifth of the questions gets some words in front."""
    if split != "train" or rng.random() < 0.8:
        return question
    first = question.split(" ", 1)[0]
    lower = first in _FIRST_WORDS  # a name must keep its capital
    return rng.choice(_POLITE) + (question[0].lower() if lower else question[0]) + question[1:]


_FIRST_WORDS = frozenset("What Which Tell Find Where Who How Do Please Give Look Say Can In According The Remember Read As Value When".split())
_FOLLOWERS = _followers()
