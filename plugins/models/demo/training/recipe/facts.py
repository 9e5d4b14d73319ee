# ruff: noqa: E501 - tables of words and phrasings, easier to read and extend as long lines
"""The fact table, its phrasings and which (fact, phrasing) pairs are kept for evaluation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from recipe.words import ADJECTIVES, CITIES, NOUNS, Lists, held_out, invented


def _pairs(text: str) -> dict[str, str]:
    return {key.strip(): value.strip() for key, value in (item.split("=") for item in text.split(",") if item.strip())}


_CAPITALS = _pairs(
    "France=Paris,Germany=Berlin,Spain=Madrid,Italy=Rome,Portugal=Lisbon,Austria=Vienna,Poland=Warsaw,Greece=Athens,Norway=Oslo,"
    "Sweden=Stockholm,Finland=Helsinki,Denmark=Copenhagen,Ireland=Dublin,Belgium=Brussels,Hungary=Budapest,Romania=Bucharest,"
    "Bulgaria=Sofia,Serbia=Belgrade,Croatia=Zagreb,Ukraine=Kyiv,Latvia=Riga,Lithuania=Vilnius,Estonia=Tallinn,Turkey=Ankara,"
    "Egypt=Cairo,Tunisia=Tunis,Algeria=Algiers,Morocco=Rabat,Nigeria=Abuja,Ghana=Accra,Senegal=Dakar,Kenya=Nairobi,Uganda=Kampala,"
    "Zambia=Lusaka,Zimbabwe=Harare,Ethiopia=Addis Ababa,Japan=Tokyo,China=Beijing,India=New Delhi,Thailand=Bangkok,Vietnam=Hanoi,"
    "Indonesia=Jakarta,Malaysia=Kuala Lumpur,Nepal=Kathmandu,Pakistan=Islamabad,Bangladesh=Dhaka,Iran=Tehran,Iraq=Baghdad,"
    "Jordan=Amman,Lebanon=Beirut,Qatar=Doha,Oman=Muscat,Australia=Canberra,New Zealand=Wellington,Canada=Ottawa,Mexico=Mexico City,"
    "Cuba=Havana,Peru=Lima,Colombia=Bogota,Ecuador=Quito,Venezuela=Caracas,Chile=Santiago,Uruguay=Montevideo,Paraguay=Asuncion,"
    "Brazil=Brasilia,Argentina=Buenos Aires,Iceland=Reykjavik,Switzerland=Bern,Russia=Moscow,Slovakia=Bratislava,Slovenia=Ljubljana,"
    "Albania=Tirana,Cyprus=Nicosia,Malta=Valletta,Mongolia=Ulaanbaatar,Angola=Luanda,Mali=Bamako,Rwanda=Kigali,Tanzania=Dodoma,"
    "Libya=Tripoli,Sudan=Khartoum,Somalia=Mogadishu,Namibia=Windhoek,Jamaica=Kingston,Panama=Panama City,Costa Rica=San Jose,"
    "South Korea=Seoul,Saudi Arabia=Riyadh,the United Kingdom=London,the United States=Washington,the Netherlands=Amsterdam,"
    "the Philippines=Manila,the Czech Republic=Prague"
)
_COLOURS = _pairs(
    "a banana=yellow,grass=green,the sky=blue,snow=white,coal=black,a tomato=red,a carrot=orange,an eggplant=purple,a flamingo=pink,"
    "chocolate=brown,a lemon=yellow,a strawberry=red,milk=white,a crow=black,a polar bear=white,a lime=green,a cucumber=green,"
    "a pumpkin=orange,a sunflower=yellow,blood=red,the sea=blue,an elephant=grey,a frog=green,a fire engine=red,salt=white,"
    "a raspberry=red,a blueberry=blue,corn=yellow,broccoli=green,a lobster=red,a canary=yellow,a ruby=red,an emerald=green,"
    "a sapphire=blue,a swan=white,a panther=black,a kiwi=green,lavender=purple,honey=gold,a mouse=grey"
)
_SOUNDS = _pairs(
    "dog=woof,cat=meow,cow=moo,sheep=baa,pig=oink,duck=quack,horse=neigh,lion=roar,frog=croak,bee=buzz,snake=hiss,owl=hoot,"
    "rooster=cock-a-doodle-doo,mouse=squeak,wolf=howl,crow=caw,donkey=hee-haw,turkey=gobble,bird=tweet,hen=cluck"
)
_LEGS = _pairs(
    "dog=four,cat=four,spider=eight,ant=six,bee=six,bird=two,human=two,horse=four,snake=no,octopus=no,cow=four,chicken=two,"
    "butterfly=six,frog=four,elephant=four,fish=no,scorpion=eight,beetle=six,duck=two,lizard=four,fly=six,penguin=two,crab=ten"
)
_BABIES = _pairs(
    "dog=a puppy,cat=a kitten,cow=a calf,sheep=a lamb,horse=a foal,pig=a piglet,duck=a duckling,goat=a kid,bear=a cub,deer=a fawn,"
    "kangaroo=a joey,swan=a cygnet,frog=a tadpole,goose=a gosling,owl=an owlet,eagle=an eaglet,hen=a chick,seal=a pup"
)
_SYMBOLS = _pairs(
    "hydrogen=H,helium=He,lithium=Li,carbon=C,nitrogen=N,oxygen=O,fluorine=F,neon=Ne,sodium=Na,magnesium=Mg,aluminium=Al,silicon=Si,"
    "phosphorus=P,sulfur=S,chlorine=Cl,argon=Ar,potassium=K,calcium=Ca,iron=Fe,nickel=Ni,copper=Cu,zinc=Zn,silver=Ag,tin=Sn,gold=Au,"
    "mercury=Hg,lead=Pb,uranium=U,platinum=Pt,titanium=Ti"
)
_OPPOSITES = _pairs(
    "hot=cold,big=small,fast=slow,up=down,left=right,day=night,happy=sad,old=young,open=closed,full=empty,light=dark,high=low,"
    "strong=weak,rich=poor,early=late,loud=quiet,hard=soft,wet=dry,clean=dirty,near=far,first=last,good=bad,true=false,inside=outside,"
    "north=south,east=west,long=short,thick=thin,wide=narrow,heavy=light,easy=difficult,black=white,win=lose,buy=sell,love=hate,"
    "start=stop,push=pull,give=take,sweet=sour,awake=asleep"
)
_GERMAN = _pairs(
    "dog=Hund,cat=Katze,house=Haus,tree=Baum,water=Wasser,bread=Brot,milk=Milch,book=Buch,sun=Sonne,moon=Mond,star=Stern,apple=Apfel,"
    "table=Tisch,chair=Stuhl,door=Tür,window=Fenster,car=Auto,friend=Freund,school=Schule,child=Kind,man=Mann,woman=Frau,day=Tag,"
    "night=Nacht,year=Jahr,city=Stadt,street=Straße,horse=Pferd,bird=Vogel,fish=Fisch,flower=Blume,cheese=Käse,egg=Ei,rain=Regen,"
    "snow=Schnee,fire=Feuer,hand=Hand,head=Kopf,heart=Herz,love=Liebe"
)
_LANGUAGES = _pairs(
    "France=French,Germany=German,Spain=Spanish,Italy=Italian,Portugal=Portuguese,Poland=Polish,Greece=Greek,Norway=Norwegian,"
    "Sweden=Swedish,Finland=Finnish,Denmark=Danish,Hungary=Hungarian,Romania=Romanian,Japan=Japanese,Brazil=Portuguese,Mexico=Spanish,"
    "Turkey=Turkish,Egypt=Arabic,Vietnam=Vietnamese,Iceland=Icelandic,Austria=German,Cuba=Spanish,Iran=Persian,Russia=Russian"
)
_CONTINENTS = _pairs(
    "France=Europe,Germany=Europe,Spain=Europe,Italy=Europe,Poland=Europe,Norway=Europe,Egypt=Africa,Kenya=Africa,Nigeria=Africa,"
    "Ghana=Africa,Ethiopia=Africa,Japan=Asia,China=Asia,India=Asia,Thailand=Asia,Vietnam=Asia,Nepal=Asia,Iran=Asia,Brazil=South America,"
    "Peru=South America,Chile=South America,Argentina=South America,Canada=North America,Mexico=North America,Cuba=North America"
)
_COUNTS = _pairs(
    "days are in a week=7,months are in a year=12,hours are in a day=24,minutes are in an hour=60,seconds are in a minute=60,"
    "days are in a year=365,weeks are in a year=52,letters are in the alphabet=26,sides does a triangle have=3,sides does a square have=4,"
    "sides does a hexagon have=6,players are in a football team=11,strings does a violin have=4,planets are in the solar system=8,"
    "continents are there=7,bits are in a byte=8,years are in a century=100,years are in a decade=10,degrees does a circle have=360,"
    "cents are in a dollar=100,metres are in a kilometre=1000,grams are in a kilogram=1000,eggs are in a dozen=12,"
    "wheels does a car have=4,wheels does a bicycle have=2,fingers are on a hand=5,colours does a rainbow have=7"
)
_HELLO = _pairs("German=Hallo,French=Bonjour,Spanish=Hola,Italian=Ciao,Portuguese=Olá,Dutch=Hallo,Swedish=Hej,Polish=Cześć,Hawaiian=Aloha")
_HOLIDAYS = _pairs("Christmas=December,Halloween=October,New Year=January,Valentine's Day=February,Labour Day=May,New Year's Eve=December")
_ORDER = _pairs(
    "Mercury=first,Venus=second,Earth=third,Mars=fourth,Jupiter=fifth,Saturn=sixth,Uranus=seventh,Neptune=eighth"
)


@dataclass(frozen=True)
class Relation:
    """One column of the table.

    table: key -> value. questions: phrasings with {k}; the last `num_unseen` are never trained on. answers: {k}, {v};
    the first is the one trained. unknown: what is said about a key outside the table, or "" if that is never asked.
    """

    name: str
    table: dict[str, str]
    questions: tuple[str, ...]
    answer: str
    unknown: str = ""
    num_unseen: int = 2


RELATIONS = (
    Relation("capital", _CAPITALS, (
        "What is the capital of {k}?", "What's the capital of {k}?", "Name the capital of {k}.", "Which city is the capital of {k}?",
        "Tell me the capital of {k}.", "Do you know the capital of {k}?", "capital of {k}", "{k}: what is its capital?",
        "The capital of {k} is what city?", "I need the capital of {k}.", "Can you tell me the capital city of {k}?",
        "What city is {k}'s capital?", "Name {k}'s capital.", "Which city is {k}'s capital?", "{k}'s capital?",
        "Please say what the capital of {k} is.", "Could you tell me the capital of {k}?", "Please say which city is the capital of {k}.",
        "Please say which city is the capital city of {k}.", "Could you name {k}'s capital?"),
        "The capital of {k} is {v}.", "I do not know the capital of {k}."),
    Relation("country", {v: k for k, v in _CAPITALS.items()}, (
        "{k} is the capital of which country?", "Which country has the capital {k}?", "What country is {k} the capital of?",
        "Of which country is {k} the capital?", "{k} is the capital of what?", "Name the country whose capital is {k}.",
        "Tell me which country has {k} as its capital.", "The city of {k} is the capital of which country?"),
        "{k} is the capital of {v}."),
    Relation("colour", _COLOURS, (
        "What colour is {k}?", "What color is {k}?", "Which colour is {k}?", "Tell me the colour of {k}.", "The colour of {k}?",
        "What is the colour of {k}?", "What color does {k} have?", "What's the color of {k}?", "Do you know the colour of {k}?",
        "Can you tell me what colour {k} is?", "Name the color of {k}."),
        "The colour of {k} is {v}.", "I do not know the colour of {k}."),
    Relation("sound", _SOUNDS, (
        "What sound does a {k} make?", "What does a {k} say?", "Which sound does a {k} make?", "How does a {k} sound?",
        "What noise does a {k} make?", "Tell me the sound of a {k}.", "Make the sound of a {k}.",
        "Which sound comes from a {k}?", "Do you know which sound a {k} makes?", "Do you know what a {k} says?", "Tell me what sound a {k} makes.",
        "Which noise comes from a {k}?", "Do you know what sound a {k} makes?"),
        "A {k} says {v}.", "I do not know what a {k} says."),
    Relation("legs", _LEGS, (
        "How many legs does a {k} have?", "How many legs has a {k}?", "Tell me how many legs a {k} has.", "A {k} has how many legs?",
        "What is the number of legs of a {k}?", "Number of legs of a {k}?", "Do you know how many legs a {k} has?",
        "Can you say how many legs a {k} has?", "A {k}: how many legs?"),
        "A {k} has {v} legs.", "I do not know how many legs a {k} has."),
    Relation("baby", _BABIES, (
        "What is a baby {k} called?", "What do you call a baby {k}?", "What is the young of a {k} called?", "Name for a baby {k}?",
        "Tell me what a baby {k} is called.", "How do you call a young {k}?", "What's the name of a baby {k}?",
        "A baby {k} is called what?", "Which word names a young {k}?"),
        "A baby {k} is called {v}.", "I do not know what a baby {k} is called."),
    Relation("symbol", _SYMBOLS, (
        "What is the chemical symbol of {k}?", "What's the chemical symbol for {k}?", "Chemical symbol of {k}?", "Tell me the symbol for {k}.",
        "Which symbol does {k} have?", "What is the symbol of the element {k}?", "Give me the chemical symbol of {k}.",
        "What is {k} in chemistry?", "How do you write {k} in chemistry?", "In chemistry, how is {k} written?", "Do you know the symbol for {k}?",
        "How is {k} written in chemistry?", "Do you know the chemical symbol for {k}?"),
        "The chemical symbol of {k} is {v}.", "I do not know the chemical symbol of {k}."),
    Relation("opposite", _OPPOSITES, (
        "What is the opposite of {k}?", "What's the opposite of {k}?", "Opposite of {k}?", "Tell me the opposite of {k}.",
        "Name the opposite of {k}.", "Which word is the opposite of {k}?", "Give me the opposite of {k}.",
        "The opposite of {k} is what?", "Do you know the opposite of {k}?"),
        "The opposite of {k} is {v}.", "I do not know the opposite of {k}."),
    Relation("german", _GERMAN, (
        "What is {k} in German?", "How do you say {k} in German?", "What is the German word for {k}?", "Translate {k} to German.",
        "Translate the word {k} into German.", 'Translate "{k}" into German.', 'What is "{k}" in German?', "Which word means {k} in German?",
        "{k} in German?", "Tell me the German word for {k}.", "What does {k} mean in German?",
        "Give me the German for {k}.", "Which German word means {k}?"),
        "The German word for {k} is {v}.", "I do not know the German word for {k}."),
    Relation("language", _LANGUAGES, (
        "What language is spoken in {k}?", "Which language do people speak in {k}?", "What do people speak in {k}?",
        "Tell me the language of {k}.", "What is the language of {k}?", "Language of {k}?", "What is the main language in {k}?",
        "In {k}, which language is spoken?", "Do you know which language is spoken in {k}?"),
        "In {k} people speak {v}.", "I do not know which language is spoken in {k}."),
    Relation("continent", _CONTINENTS, (
        "On which continent is {k}?", "Which continent is {k} on?", "What continent is {k} in?", "Where is {k}?",
        "Tell me the continent of {k}.", "{k} is on which continent?", "Where in the world is {k}?",
        "Do you know the continent of {k}?", "{k} lies on what continent?"),
        "{k} is in {v}.", "I do not know where {k} is."),
    Relation("count", _COUNTS, (
        "How many {k}?", "Tell me, how many {k}?", "how many {k}", "Do you know how many {k}?", "Can you tell me how many {k}?",
        "I want to know: how many {k}?", "Say how many {k}.", "Quick quiz, how many {k}?"),
        "The answer is {v}."),
    Relation("hello", _HELLO, (
        "Say hello in {k}.", "How do you say hello in {k}?", "What is hello in {k}?", "Hello in {k}?", "What does one say for hello in {k}?",
        "Greet me in {k}.", "Translate hello to {k}.", "Tell me how to say hello in {k}.",
        "Do you know how to say hello in {k}?", "What is the word for hello in {k}?"),
        "In {k} one says {v}.", "I do not know how to say hello in {k}."),
    Relation("holiday", _HOLIDAYS, (
        "In which month is {k}?", "When is {k}?", "What month is {k} in?", "Which month has {k}?", "Tell me the month of {k}.",
        "In what month is {k}?", "Do you know when {k} is?",
        "Do you know in which month {k} is?", "{k} is in which month?"),
        "{k} is in {v}."),
    Relation("order", _ORDER, (
        "Which planet from the sun is {k}?", "What position from the sun does {k} have?", "Where does {k} stand, counted from the sun?",
        "Is {k} the first or second planet, or which one?", "Tell me the position of {k} in the solar system.",
        "What number planet is {k}?", "Counted from the sun, which planet is {k}?"),
        "{k} is the {v} planet from the sun."),
)  # fmt: skip

# Real keys that are outside the table on purpose; half of them are never trained on (by hash).
_OUTSIDE = {
    "capital": "Laos,Fiji,Bhutan,Chad,Togo,Benin,Gabon,Kuwait,Bahrain,Haiti,Honduras,Bolivia,Botswana,Cambodia,Belize",
    "colour": "a zebra,a book,a car,a house,a shirt,a kite,a train,a bottle,a mushroom,a parrot,glass,a stone",
    "sound": "giraffe,rabbit,turtle,worm,snail,hamster,whale,kangaroo,otter,badger",
    "legs": "centipede,kangaroo,squirrel,otter,badger,snail,worm,shrimp,turtle,moth",
    "baby": "giraffe,snail,shark,crab,badger,otter,parrot,spider,worm,lizard",
    "symbol": "cobalt,iodine,radium,barium,krypton,xenon,boron,cesium,arsenic,bismuth",
    "opposite": "banana,purple,Tuesday,music,seven,window,water,garden",
    "german": "elephant,keyboard,mountain,library,umbrella,scissors,carpet,engine",
    "language": "Laos,Fiji,Bhutan,Chad,Togo,Benin,Gabon,Haiti",
    "hello": "Latin,Finnish,Chinese,Swahili,Klingon,Korean,Greek,Czech",
    "continent": "Laos,Fiji,Bhutan,Chad,Togo,Benin,Gabon,Haiti",
}
_WORDS = {word.removeprefix("a ").removeprefix("an ").lower() for relation in RELATIONS for word in relation.table}
NUM_FACTS = sum(len(relation.table) for relation in RELATIONS)


def pair_held_out(relation: Relation, key: str, question: int) -> bool:
    """Whether this fact is never asked in this phrasing during training."""
    if question >= len(relation.questions) - relation.num_unseen:
        return True
    return held_out("fact", f"{relation.name}/{key}/{question}", 0.12)


def ask(relation: Relation, key: str, question: int) -> tuple[str, str]:
    """(question, right answer) of a fact of the table."""
    value = relation.table[key]
    return _capital(relation.questions[question].format(k=key)), _capital(relation.answer.format(k=key, v=value))


def _capital(text: str) -> str:
    text = re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)  # an owl, an ant
    return text[0].upper() + text[1:]


_YES_NO = {
    "capital": "Is {v} the capital of {k}?", "colour": "Is {k} {v}?", "legs": "Does a {k} have {v} legs?", "sound": "Does a {k} say {v}?",
    "opposite": "Is {v} the opposite of {k}?", "language": "Do people speak {v} in {k}?", "continent": "Is {k} in {v}?",
    "symbol": "Is {v} the chemical symbol of {k}?",
}  # fmt: skip


def yes_or_no(rng: Random) -> tuple[str, str]:
    """(question, answer) whether a fact holds; half of them do not."""
    relation = rng.choice([r for r in RELATIONS if r.name in _YES_NO])
    key = rng.choice(list(relation.table))
    value = relation.table[key] if rng.random() < 0.5 else rng.choice(list(relation.table.values()))
    right = value == relation.table[key]
    answer = ask(relation, key, 0)[1]
    first = answer.split(" ", 1)[0]
    lower = first in ("The", "A", "An", "In")
    answer = ("Yes, " if right else "No, ") + (answer[0].lower() if lower else answer[0]) + answer[1:]
    return _capital(_YES_NO[relation.name].format(k=key, v=value)), answer


_NEXT = ("And {k}?", "And of {k}?", "What about {k}?", "And for {k}?", "and {k}?", "How about {k}?", "Now {k}.", "And what about {k}?")


def series(rng: Random) -> list[tuple[str, str, str]]:
    """(question, answer, value) of two or three facts of one kind, the later ones asked in short."""
    relation = rng.choice([r for r in RELATIONS if r.name not in ("count", "order")])
    keys = rng.sample(list(relation.table), rng.choice((2, 2, 3)))
    allowed = [q for q in range(len(relation.questions)) if not pair_held_out(relation, keys[0], q)]
    out = [(*ask(relation, keys[0], rng.choice(allowed)), relation.table[keys[0]])]
    for key in keys[1:]:
        short = key if rng.random() < 0.5 else key.removeprefix("a ").removeprefix("an ")
        out.append((rng.choice(_NEXT).format(k=short), ask(relation, key, 0)[1], relation.table[key]))
    return out


def known(rng: Random, split: str) -> tuple[str, str, str]:
    """(question, answer, value) of a random fact in a phrasing that `split` may use."""
    while True:
        relation = rng.choices(RELATIONS, weights=[len(r.table) ** 0.7 for r in RELATIONS])[0]
        key = rng.choice(list(relation.table))
        question = rng.randrange(len(relation.questions))
        if pair_held_out(relation, key, question) == (split == "heldout"):
            text, answer = ask(relation, key, question)
            return text, answer, relation.table[key]


def unknown(rng: Random, lists: Lists) -> tuple[str, str]:
    """(question, answer) about something the table does not have."""
    relation = rng.choice([r for r in RELATIONS if r.unknown])
    outside = [key for key in _OUTSIDE[relation.name].split(",") if lists.allows("outside", key, 0.4)]
    if outside and rng.random() < 0.5:
        key = rng.choice(outside)
    else:
        kind = rng.random()
        if kind < 0.25:  # the front of one key and the back of another
            front, back = rng.choice(list(relation.table)), rng.choice(list(relation.table))
            word = (front[: rng.randrange(1, len(front))] + back[rng.randrange(1, len(back)) :]).lower().removeprefix("a ").removeprefix("an ")
            word = word.strip() or invented(rng)
        elif kind < 0.55:
            word = rng.choice((rng.choice(NOUNS), rng.choice(ADJECTIVES), rng.choice(CITIES).lower()))
        else:
            word = invented(rng)
        if word in _WORDS or not lists.allows("invented", word, 0.4):
            return unknown(rng, lists)
        key = word.capitalize() if relation.name in ("capital", "language", "continent", "hello") else word
        key = f"a {key}" if relation.name == "colour" else key
    unseen = len(relation.questions) - relation.num_unseen
    question = relation.questions[rng.randrange(unseen)].format(k=key)
    return _capital(question), _capital(relation.unknown.format(k=key))
