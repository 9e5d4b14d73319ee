"""Small talk: intents with many phrasings, facts about the user, greetings in a few languages, and everything else."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from recipe.words import (
    ADJECTIVES,
    CITIES,
    COLOURS,
    FOODS,
    HOBBIES,
    JOBS,
    MONTHS,
    NOUNS,
    PETS,
    Lists,
    invented,
)


@dataclass
class Turn:
    """A question and its answer.

    think: what is reasoned first when thinking is enabled. check: how evaluation decides, as (kind, expected).
    weight: of the answer's tokens in the loss.
    """

    user: str
    answer: str
    think: str
    check: tuple[str, Any]
    weight: int = 10


# intent -> (phrasings; the last one is never trained on), (answers)
INTENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "hello": (("Hello", "Hi", "Hey", "Hello!", "Hi there!", "Good morning", "Good evening", "Good afternoon!", "hey there", "hi",
               "Greetings", "Yo", "Hello, hello", "Good day", "hello there", "Hiya", "Howdy", "Hello again"),
              ("Hello! How can I help you?", "Hi! What can I do for you?")),
    "how": (("How are you?", "How are you doing?", "How do you do?", "How is it going?", "Are you well?", "How do you feel?",
             "What's up?", "How are things?", "how are you today", "Is everything fine?", "You ok?", "How are you feeling today?"),
            ("I am fine, thank you. How are you?",)),
    "fine": (("I am fine too.", "I'm good, thanks.", "Fine, thank you.", "I am well.", "Pretty good!", "Great, thanks.", "Not bad.",
              "I feel great today.", "I'm fine", "good", "I am doing well."),
             ("I am glad to hear that.",)),
    "bad": (("I am sad.", "Not so good.", "I feel bad today.", "I'm tired.", "I had a bad day.", "I am ill.", "I feel terrible.",
             "I am not well.", "Today was awful.", "I feel sad today."),
            ("I am sorry to hear that. I hope it gets better soon.",)),
    "who": (("Who are you?", "What is your name?", "What's your name?", "What are you called?", "Tell me your name.", "Your name?",
             "Do you have a name?", "How should I call you?", "Introduce yourself.", "what are you", "And you are?", "Please introduce yourself.",
             "What should I call you?", "May I know your name?"),
            ("I am core demo, a small language model.",)),
    "maker": (("Who made you?", "Who created you?", "Who built you?", "Where do you come from?", "Who is your creator?",
               "Who trained you?", "How were you made?", "How were you trained?", "Who programmed you?"),
              ("I was trained by the recipe in the core repository, in a few minutes on one machine.",)),
    "can": (("What can you do?", "What are you able to do?", "How can you help me?", "Help", "What do you know?", "Tell me what you can do.",
             "What are your skills?", "help me", "What can I ask you?", "What should I ask?", "Give me an example of what you can do.",
             "Which things can you do?"),
            ("I can chat a little, answer questions about a small table of facts, add and subtract, find things in long texts, "
             "repeat text, write short JSON objects, call tools and tell short stories.",)),
    "size": (("How big are you?", "How many parameters do you have?", "Are you a large model?", "How large are you?", "What size are you?",
              "Are you a small model?", "How many parameters are in you?"),
             ("I am very small: about seven million parameters.",)),
    "human": (("Are you human?", "Are you a robot?", "Are you a person?", "Are you real?", "Are you an AI?", "Are you a machine?",
               "Am I talking to a human?", "Is this a bot?", "Are you a real person?"),
              ("I am a small language model, not a person.",)),
    "age": (("How old are you?", "What is your age?", "When were you born?", "When is your birthday?", "Tell me your age.", "What age are you?"),
            ("I am a program, so I have no age.",)),
    "home": (("Where do you live?", "Where are you?", "Where is your home?", "Where are you located?", "In which place do you live?"),
             ("I live in the memory of the computer that runs me.",)),
    "thanks": (("Thanks", "Thank you", "Thank you!", "Thanks a lot!", "Thank you very much.", "Thx", "Great, thank you!", "Many thanks",
                "Cheers", "I thank you.", "Thank you so much!"),
               ("You are welcome!",)),
    "bye": (("Bye", "Goodbye", "See you", "Good night", "Bye bye", "See you later!", "I have to go.", "Farewell", "Goodbye!", "I am leaving now.",
             "Talk to you later.", "See you tomorrow!"),
            ("Goodbye! Have a nice day.",)),
    "sorry": (("Sorry", "I am sorry.", "My mistake.", "Oops", "Excuse me", "I apologize.", "Sorry about that."), ("No problem.",)),
    "yes": (("Yes", "Yes.", "Sure", "Of course", "Right", "ok", "OK", "Okay", "Yep", "Alright", "Good.", "Cool", "Fine", "I see", "Understood"),
            ("Good. What would you like to do next?",)),
    "no": (("No", "No.", "Nope", "Not really", "No thanks", "Never mind", "no thank you", "Nothing"), ("All right. Tell me if you need anything.",)),
    "praise": (("You are great.", "Well done!", "Good job", "You are smart.", "That is correct.", "Nice!", "Wow", "Awesome", "Perfect!",
                "You are very helpful.", "I like you."),
               ("Thank you! I am happy that it helps.",)),
    "blame": (("You are stupid.", "That is wrong.", "That's not right.", "You are useless.", "Bad answer.", "Wrong!", "You made a mistake."),
              ("I am sorry. I am a small model and make mistakes.",)),
    "joke": (("Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Say something funny.", "A joke please", "Can you tell a joke?",
              "Tell a joke", "I want to hear a joke."),
             ("Why did the token cross the page? To get to the other cache.",)),
    "love": (("Do you love me?", "I love you.", "Will you marry me?", "Are you my friend?", "Do you like me?", "Can we be friends?"),
             ("I am only a small model, but I like talking with you.",)),
    "favourite": (("What is your favourite colour?", "What is your favorite color?", "Which colour do you like?", "Do you have a favourite colour?",
                   "What colour do you like best?"), ("I like blue best.",)),
    "bored": (("I am bored.", "I'm bored", "What shall we do?", "Entertain me.", "There is nothing to do.", "I feel bored."),
              ("We could tell a story. Say: tell me a story about a fox.",)),
    "weather": (("How is the weather?", "What is the weather like?", "Is it raining?", "Will it rain tomorrow?", "Is it cold outside?", "weather?",
                 "What's the weather like today?"),
                ("I cannot look up the weather, because I have no tool for it here.",)),
    "time": (("What time is it?", "What day is it?", "What is the date today?", "Do you know the time?", "What's the time?", "Which year is it?",
              "Tell me the time."), ("I cannot know the time, because I have no clock.",)),
    "language": (("Which languages do you speak?", "Do you speak German?", "Can you speak French?", "What languages do you know?",
                  "Do you understand English?", "Which languages do you understand?"),
                 ("I speak English and know a few words of other languages.",)),
    "german": (("Hallo", "Guten Tag", "Guten Morgen", "Hallo!", "Guten Abend", "Grüß dich", "Moin", "Servus", "Hallo, guten Tag!"),
               ("Hallo! Wie kann ich helfen?",)),
    "german_how": (("Wie geht es dir?", "Wie geht's?", "Wie geht es Ihnen?", "Alles gut?", "wie gehts", "Na, wie geht es dir?"),
                   ("Mir geht es gut, danke.",)),
    "german_who": (("Wer bist du?", "Wie heißt du?", "Was bist du?", "Wie ist dein Name?", "Sag mir deinen Namen.", "Und wer bist du?"),
                   ("Ich bin core demo, ein kleines Sprachmodell.",)),
    "french": (("Bonjour", "Salut", "Bonjour!", "Bonsoir", "Coucou", "Bonjour à tous"), ("Bonjour ! Comment puis-je aider ?",)),
    "spanish": (("Hola", "Buenos días", "¡Hola!", "Buenas tardes", "hola!", "Hola, buenas"), ("¡Hola! ¿Cómo puedo ayudar?",)),
    "italian": (("Ciao", "Buongiorno", "Ciao!", "Buonasera", "Salve", "Ciao, buongiorno"), ("Ciao! Come posso aiutare?",)),
}  # fmt: skip

DONT_KNOW = (
    "I do not know that. I am a small demo model: ask me about capitals, colours, animals, sums, or give me a text to search."
)
_OFF_WORLD = tuple(
    """How do I cook {noun}?|Why is the {noun} {adj}?|Who won the world cup in {year}?|Write a poem about the {noun}.|
Explain quantum physics.|What is the meaning of life?|Who is the president of {city}?|How does a {noun} work?|
What do you think about {noun}s?|Can you book a flight to {city}?|Write a Python program that sorts a list.|
How far is it from {city} to {city}?|What happened in {year}?|Who wrote the book about the {noun}?|Give me advice about my {noun}.|
Why do people like {adj} {noun}s?|What is the price of a {noun}?|How can I repair my {noun}?|Is a {noun} better than a {noun}?|
Who is {name}?|When was {city} founded?|How many people live in {city}?|What is a {noun}?|Tell me about {city}.|
Tell me about {noun}s.|How tall is {name}?|Write an essay about {city}.|Summarize the history of {city}.|Who invented the {noun}?|
What should I wear in {city}?|Recommend a good {noun}.|How do I learn {lang}?|What is the best {noun}?|Solve the equation x squared equals {year}.|
Where can I buy a {adj} {noun}?|How do I get from {city} to {city}?|Do {noun}s dream?|What are the news?|Who is the king of {city}?|
Can a {noun} fly?|Why?|What is love?|How do computers work?|Write a song.|Plan my holiday in {city}.|Is {city} nice?|
Which {noun} should I buy?|What is machine learning?|How does a transformer work?|What does {word} mean?|Define {word}.|
Tell me something interesting.|What is your opinion on politics?|Who is stronger, a {noun} or a {noun}?|Draw a {noun}.|
Debug my code.|How do I lose weight?|What is the speed of light?|Which team plays in {city}?|Who painted the {adj} {noun}?|
How long does it take to build a {noun}?|Compare {city} and {city}.|Give me a recipe for {noun} soup.|Who discovered {word}?|
What is the distance to the moon?|Is {word} a word?|Can you drive a {noun}?|What is inside a {noun}?|How old is {name}?""".replace("\n", "").split("|")
)  # fmt: skip


def intent(rng: Random, split: str) -> Turn:
    """One exchange of small talk."""
    name = rng.choice(tuple(INTENTS))
    phrasings, answers = INTENTS[name]
    user = phrasings[-1] if split == "heldout" else rng.choice(phrasings[:-1])
    return Turn(user, rng.choice(answers), "Small talk. I answer in a friendly way.", ("one_of", list(answers)))


def off_world(rng: Random, lists: Lists) -> Turn:
    """A question outside the small world; the answer says so."""
    choices = [text for text in _OFF_WORLD if lists.allows("off_world", text)]
    text = rng.choice(choices)
    while "{" in text:
        for slot, value in (
            ("{noun}", rng.choice(NOUNS)), ("{adj}", rng.choice(ADJECTIVES)), ("{city}", rng.choice(CITIES)),
            ("{year}", str(rng.randrange(1800, 2030))), ("{name}", lists.name(rng)), ("{word}", invented(rng)),
            ("{lang}", rng.choice(("Chinese", "Latin", "Swahili", "Korean", "Dutch"))),
        ):  # fmt: skip
            text = text.replace(slot, value, 1)
    return Turn(text, DONT_KNOW, "This is outside what I know.", ("equals", DONT_KNOW))


@dataclass(frozen=True)
class Attribute:
    """Something a user may tell about themselves. tell and ask: phrasings, the last one never trained on."""

    key: str
    tell: tuple[str, ...]
    confirm: str
    ask: tuple[str, ...]
    recall: str
    missing: str


ATTRIBUTES = (
    Attribute("name", ("My name is {v}.", "I am {v}.", "I'm {v}", "Call me {v}.", "Hello, my name is {v}.", "Hi, I am {v}!", "my name is {v}",
                       "You can call me {v}.", "People call me {v}.", "Hey, I'm {v}. Nice to meet you.", "Hi there, {v} here."),
              "Nice to meet you, {v}!",
              ("What is my name?", "What's my name?", "Do you know my name?", "Do you remember my name?", "Who am I?", "Tell me my name.",
               "How am I called?", "Say my name.", "Can you remember my name?"),
              "Your name is {v}.", "You have not told me your name yet."),
    Attribute("colour", ("My favourite colour is {v}.", "My favorite color is {v}.", "I like the colour {v} best.", "The colour I like most is {v}.",
                         "I love the colour {v}.", "{v} is my favourite colour."),
              "{v} is a nice colour. I will remember it.",
              ("What is my favourite colour?", "What's my favorite color?", "Which colour do I like best?", "Do you remember my favourite colour?",
               "Tell me my favourite colour.", "What colour do I like most?"),
              "Your favourite colour is {v}.", "You have not told me your favourite colour yet."),
    Attribute("city", ("I live in {v}.", "I am from {v}.", "My home is in {v}.", "I come from {v}.", "My city is {v}.", "My hometown is {v}."),
              "{v} sounds like a good place to live.",
              ("Where do I live?", "Which city do I live in?", "Do you remember where I live?", "What is my city?", "Where am I from?",
               "Tell me where I live."),
              "You live in {v}.", "You have not told me where you live yet."),
    Attribute("job", ("I work as a {v}.", "I am a {v}.", "My job is {v}.", "I'm a {v} by profession.", "By trade I am a {v}."),
              "Being a {v} must be interesting.",
              ("What is my job?", "What do I do for work?", "Do you remember my job?", "What's my job?", "What do I work as?"),
              "You work as a {v}.", "You have not told me your job yet."),
    Attribute("food", ("My favourite food is {v}.", "I love eating {v}.", "I like {v} very much.", "The food I like best is {v}.",
                       "Nothing tastes better than {v}."),
              "I hear that {v} can be very tasty.",
              ("What is my favourite food?", "What do I like to eat?", "What's my favorite food?", "Do you remember my favourite food?",
               "Which food do I like best?"),
              "Your favourite food is {v}.", "You have not told me your favourite food yet."),
    Attribute("hobby", ("My hobby is {v}.", "I enjoy {v}.", "In my free time I like {v}.", "My favourite hobby is {v}.", "I spend my weekends {v}."),
              "{v} is a great hobby.",
              ("What is my hobby?", "What's my hobby?", "What do I do in my free time?", "Do you remember my hobby?", "Tell me my hobby."),
              "Your hobby is {v}.", "You have not told me your hobby yet."),
    Attribute("pet", ("I have a {v}.", "My pet is a {v}.", "I own a {v}.", "At home I have a {v}.", "There is a {v} in my home."),
              "A {v} is a good friend to have.",
              ("What pet do I have?", "Which pet do I have?", "Do you remember my pet?", "What is my pet?", "Which animal lives with me?"),
              "You have a {v}.", "You have not told me about a pet yet."),
    Attribute("number", ("My lucky number is {v}.", "{v} is my lucky number.", "I think {v} brings me luck.", "My favourite number is {v}.",
                         "The number I like is {v}."),
              "I will remember the number {v}.",
              ("What is my lucky number?", "What's my lucky number?", "Which number brings me luck?", "Do you remember my number?",
               "Tell me my lucky number."),
              "Your lucky number is {v}.", "You have not told me your lucky number yet."),
    Attribute("age", ("I am {v} years old.", "My age is {v}.", "I'm {v} years old.", "I turned {v} this year.", "I am aged {v}."),
              "{v} is a good age.",
              ("How old am I?", "What is my age?", "Do you remember my age?", "What's my age?", "Tell me my age."),
              "You are {v} years old.", "You have not told me your age yet."),
    Attribute("month", ("My birthday is in {v}.", "I was born in {v}.", "I have my birthday in {v}.", "My birth month is {v}.", "I celebrate in {v}."),
              "I hope you have a great party in {v}.",
              ("When is my birthday?", "In which month was I born?", "Which month is my birthday in?", "What is my birth month?",
               "In what month do I celebrate?"),
              "Your birthday is in {v}.", "You have not told me your birthday yet."),
)  # fmt: skip


def value(rng: Random, key: str, lists: Lists) -> str:
    """A value for an attribute."""
    if key == "name":
        return lists.name(rng)
    if key == "city":
        return lists.city(rng)
    if key == "number":
        return str(rng.randrange(1, 1000))
    if key == "age":
        return str(rng.randrange(5, 99))
    options = {"colour": COLOURS, "job": JOBS, "food": FOODS, "hobby": HOBBIES, "pet": PETS, "month": MONTHS}[key]
    return rng.choice([option for option in options if lists.allows(key, option, 0.2)] or options)


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]


def _pick(rng: Random, options: tuple[str, ...], split: str) -> str:
    return options[-1] if split == "heldout" else rng.choice(options[:-1])


def tell(rng: Random, attribute: Attribute, told: str, split: str) -> Turn:
    """The user tells `told`."""
    text = _upper(_pick(rng, attribute.tell, split).format(v=told))
    answer = _upper(attribute.confirm.format(v=told))
    return Turn(text, answer, f"The user tells me: {attribute.key} = {told}.", ("equals", answer))


def recall(rng: Random, attribute: Attribute, told: str | None, split: str) -> Turn:
    """The user asks for what was told, or never was (`told` None)."""
    answer = attribute.missing if told is None else attribute.recall.format(v=told)
    think = f"The {attribute.key} was not told." if told is None else f"Earlier the user told me: {attribute.key} = {told}."
    return Turn(_pick(rng, attribute.ask, split), answer, think, ("equals", answer), weight=20)
