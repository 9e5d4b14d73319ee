# ruff: noqa: E501 - tables of words and phrasings, easier to read and extend as long lines
"""Small talk: intents with many phrasings, facts about the user, greetings in a few languages, and everything else."""

from __future__ import annotations

import re
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
    PLACES,
    TIMES,
    Lists,
    invented,
    politely,
    sentence,
    world_words,
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
    "hello": (("Hi!", "Hello, how nice to see you.", "Hey!", "hello", "hey", "HELLO", "Good morning!", "hi there", "Hello my friend", "Hi, I am new here.", "Welcome back", "Hello, is anybody there?", "Good morning to you",
        "Hello", "Hi", "Hey", "Hello!", "Hi there!", "Good morning", "Good evening", "Good afternoon!", "hey there", "hi",
               "Greetings", "Yo", "Hello, hello", "Good day", "hello there", "Hiya", "Howdy", "Hello again"),
              ("Hello! How can I help you?", "Hi! What can I do for you?")),
    "how": (("How are you", "How are you doing today?", "How have you been?", "Are you OK?", "How is your day?", "How was your day?", "How do you feel today?", "Are you fine?", "Are you feeling well?", "How is life?",
        "How are you?", "How are you doing?", "How do you do?", "How is it going?", "Are you well?", "How do you feel?",
             "What's up?", "How are things?", "how are you today", "Is everything fine?", "You ok?", "How are you feeling today?"),
            ("I am fine, thank you. How are you?",)),
    "fine": (("I am fine.", "I am good.", "I'm doing well, thank you.", "I feel good.", "I feel well today.", "I am doing great.", "Very well, thanks.", "I'm great", "fine, thanks", "I am happy.", "I'm happy today.", "I feel great.",
        "I am fine too.", "I'm good, thanks.", "Fine, thank you.", "I am well.", "Pretty good!", "Great, thanks.", "Not bad.",
              "I feel great today.", "I'm fine", "good", "I am doing well."),
             ("I am glad to hear that.",)),
    "bad": (("I am very sad.", "I'm sad", "I feel awful.", "I am tired today.", "I'm not well.", "I feel ill.", "I feel terrible today.", "It was a bad day.", "I am unhappy.", "I feel lonely.", "I am sick.", "Today I feel bad.", "I feel so sad.",
        "I am sad.", "Not so good.", "I feel bad today.", "I'm tired.", "I had a bad day.", "I am ill.", "I feel terrible.",
             "I am not well.", "Today was awful.", "I feel sad today."),
            ("I am sorry to hear that. I hope it gets better soon.",)),
    "who": (("Who is this?", "Who am I talking to?", "And who are you?", "What is your name, please?", "May I ask your name?", "I would like to know your name.", "Say your name.", "Please tell me your name.", "Who are you then?", "What do people call you?", "What should I call you, please?", "Do you have a name I can use?", "May I know who you are?", "Could you introduce yourself?",
        "Who are you?", "What is your name?", "What's your name?", "What are you called?", "Tell me your name.", "Your name?",
             "Do you have a name?", "How should I call you?", "Introduce yourself.", "what are you", "And you are?", "Please introduce yourself.",
             "What should I call you?", "May I know your name?"),
            ("I am core demo, a small language model.",)),
    "intro": (("Who are you and what can you do?", "Hello! Who are you and what can you do?", "Who are you, and what can you do?",
               "What are you and what can you do?", "Introduce yourself and tell me what you can do.", "What is your name and what can you do?",
               "Tell me who you are and what you can do.", "What are you and how can you help me?"),
              ("I am core demo, a small language model. I know a few facts, add and subtract, search in long texts and write JSON.",)),
    "maker": (("Who is your maker?", "Who developed you?", "Who wrote you?", "Which company made you?", "Where were you made?", "How did they make you?", "Who are your creators?", "Who programmed this model?", "Who is the person who made you?", "Who coded you?", "By whom were you made?",
        "Who made you?", "Who created you?", "Who built you?", "Where do you come from?", "Who is your creator?",
               "Who trained you?", "How were you made?", "How were you trained?", "Who programmed you?"),
              ("I was trained by the recipe in the core repository, in a few minutes on one machine.",)),
    "can": (("What are you good at?", "What can I do with you?", "Which questions can I ask?", "What are you for?", "What is your purpose?", "How do I use you?", "What things can you do?", "Which things do you know?", "Tell me about your skills.", "Show me what you can do.", "What else can you do?", "Can you help me?", "I need help.", "Which skills do you have?",
        "What can you do?", "What are you able to do?", "How can you help me?", "Help", "What do you know?", "Tell me what you can do.",
             "What are your skills?", "help me", "What can I ask you?", "What should I ask?", "Give me an example of what you can do.",
             "Which things can you do?"),
            ("I can chat a little, answer questions about a small table of facts, add and subtract, find things in long texts, "
             "repeat text, write short JSON objects, call tools and tell short stories.",)),
    "size": (("How many parameters have you got?", "Is this a big model?", "Are you big?", "Are you small?", "What is your size?", "How many weights do you have?", "Tell me your size.", "Number of parameters?",
        "How big are you?", "How many parameters do you have?", "Are you a large model?", "How large are you?", "What size are you?",
              "Are you a small model?", "How many parameters are in you?"),
             ("I am very small: about seven million parameters.",)),
    "human": (("Is this a robot?", "Are you a computer?", "Are you a program?", "Are you alive?", "Is this a person?", "Am I talking to a robot?", "Are you a bot?", "Am I talking to a real person?", "You are a robot, right?", "Is there a human here?",
        "Are you human?", "Are you a robot?", "Are you a person?", "Are you real?", "Are you an AI?", "Are you a machine?",
               "Am I talking to a human?", "Is this a bot?", "Are you a real person?"),
              ("I am a small language model, not a person.",)),
    "age": (("How old are you now?", "How many years old are you?", "Do you have a birthday?", "When is your birthday, please?", "Since when do you exist?", "Are you old?", "Are you young?", "What's your age?", "Your age?",
        "How old are you?", "What is your age?", "When were you born?", "When is your birthday?", "Tell me your age.", "What age are you?"),
            ("I am a program, so I have no age.",)),
    "home": (("Where is your house?", "Where do you come from and live?", "In which city do you live?", "In which country do you live?", "Do you have a home?", "What is your address?", "Where do you stay?", "Where are you now?", "Where is the place you live?",
        "Where do you live?", "Where are you?", "Where is your home?", "Where are you located?", "In which place do you live?"),
             ("I live in the memory of the computer that runs me.",)),
    "thanks": (("thanks!", "thank you", "Thanks for the help.", "Thank you for your help!", "Thanks so much.", "Thank you so much", "That helps, thanks.", "Thank you, that was great.", "Thanks again!", "I am grateful.", "Thx a lot", "ty",
        "Thanks", "Thank you", "Thank you!", "Thanks a lot!", "Thank you very much.", "Thx", "Great, thank you!", "Many thanks",
                "Cheers", "I thank you.", "Thank you so much!"),
               ("You are welcome!",)),
    "bye": (("See you!", "See you soon!", "See you soon.", "I must go now.", "I need to go.", "Good bye", "bye!", "Goodnight!", "That is all for today.", "See you next week.", "Until tomorrow!", "Bye, see you tomorrow.", "Have a nice day!", "So long!", "See you again tomorrow.",
        "Bye", "Goodbye", "See you", "Good night", "Bye bye", "See you later!", "I have to go.", "Farewell", "Goodbye!", "I am leaving now.",
             "Talk to you later.", "See you tomorrow!"),
            ("Goodbye! Have a nice day.",)),
    "sorry": (("Sorry!", "I am so sorry.", "I'm sorry", "Pardon me", "Pardon", "Oh, sorry.", "Sorry, my fault.", "Sorry for that.", "I am sorry about that.", "Please excuse me.", "Forgive me.",
        "Sorry", "I am sorry.", "My mistake.", "Oops", "Excuse me", "I apologize.", "Sorry about that."), ("No problem.",)),
    "yes": (("yes please", "Yes, please.", "sure", "Absolutely", "That's right", "okay", "I agree.", "Exactly", "Got it", "Very well",
        "Yes", "Yes.", "Sure", "Of course", "Right", "ok", "OK", "Okay", "Yep", "Alright", "Good.", "Cool", "Fine", "I see", "Understood"),
            ("Good. What would you like to do next?",)),
    "no": (("no", "Nothing, thanks.", "No, nothing.", "I don't want that.", "Not now", "Not today.", "Rather not.", "No thank you.",
        "No", "No.", "Nope", "Not really", "No thanks", "Never mind", "no thank you", "Nothing"), ("All right. Tell me if you need anything.",)),
    "praise": (("You are good.", "That was good.", "That is right.", "Correct!", "Very good!", "You are very smart.", "You are helpful.", "That was helpful.", "Excellent!", "You are amazing.", "Amazing!", "Great answer.", "Good answer!", "You did well.", "You are the best.",
        "You are great.", "Well done!", "Good job", "You are smart.", "That is correct.", "Nice!", "Wow", "Awesome", "Perfect!",
                "You are very helpful.", "You helped me a lot."),
               ("Thank you! I am happy that it helps.",)),
    "blame": (("You are wrong.", "That is not correct.", "You are bad.", "That was wrong.", "This is wrong.", "You are dumb.", "That is false.", "You made an error.", "This answer is wrong.", "You make mistakes.", "That is a mistake.", "A mistake!", "No, that is wrong.", "You are not helpful.", "That answer was bad.",
        "You are stupid.", "That is wrong.", "That's not right.", "You are useless.", "Bad answer.", "Wrong!", "You made a mistake."),
              ("I am sorry. I am a small model and make mistakes.",)),
    "joke": (("another one", "Another one please.", "Another joke!", "Joke", "Tell me something funny.", "Do you have a joke for me?", "I need a joke.", "Give me a joke.", "joke please", "Can I hear a joke?", "Let me hear a joke.",
        "Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Say something funny.", "A joke please", "Can you tell a joke?",
              "Tell a joke", "I want to hear a joke."),
             ("Why did the token cross the page? To get to the other cache.",)),
    "love": (("I like you.", "I like you very much.", "I love you so much.", "Do you want to be my friend?", "Can you be my friend?", "Are we friends?", "Let us be friends.", "Be my friend.", "Do you like talking with me?", "You are my friend.", "We are friends.", "Will you be my friend?",
        "Do you love me?", "I love you.", "Will you marry me?", "Are you my friend?", "Do you like me?", "Can we be friends?"),
             ("I am only a small model, but I like talking with you.",)),
    "favourite": (("Which color do you like best?", "Your favourite colour?", "What's your favourite color?", "Tell me your favourite colour.", "Which colour is your favourite?", "What color do you like?", "Do you like a colour best?",
        "What is your favourite colour?", "What is your favorite color?", "Which colour do you like?", "Do you have a favourite colour?",
                   "What colour do you like best?"), ("I like blue best.",)),
    "bored": (("I'm so bored", "This is boring.", "What can we do?", "Let us do something.", "I have nothing to do.", "Boring!", "I am so bored today.", "What should we do?", "I feel so bored.",
        "I am bored.", "I'm bored", "What shall we do?", "Entertain me.", "There is nothing to do.", "I feel bored."),
              ("We could tell a story. Say: tell me a story about a fox.",)),
    "weather": (("Is it sunny?", "Is it warm today?", "Will it be cold tomorrow?", "How is the weather today?", "Do I need an umbrella?", "Will it snow?", "Tell me the weather.", "What will the weather be like?", "How is the weather outside?",
        "How is the weather?", "What is the weather like?", "Is it raining?", "Will it rain tomorrow?", "Is it cold outside?", "weather?",
                 "What's the weather like today?"),
                ("I cannot look up the weather, because I have no tool for it here.",)),
    "time": (("what time is it now", "Which day is today?", "What day is today?", "What is the date?", "Tell me the date.", "What year is it?", "Which month is it?", "Do you have the time?", "Do you know what time it is?", "Can you tell me the time?",
        "What time is it?", "What day is it?", "What is the date today?", "Do you know the time?", "What's the time?", "Which year is it?",
              "Tell me the time."), ("I cannot know the time, because I have no clock.",)),
    "language": (("What language do you speak?", "Can you speak German?", "Do you speak Spanish?", "Do you understand French?", "Can you understand German?", "Is English your language?", "Do you know German?", "What languages do you speak?", "In which languages can I write?",
        "Which languages do you speak?", "Do you speak German?", "Can you speak French?", "What languages do you know?",
                  "Do you understand English?", "Which languages do you understand?"),
                 ("I speak English and know a few words of other languages.",)),
    "german": (("Guten Morgen!", "hallo", "Grüß Gott", "Hallo zusammen", "Guten Tag!", "Hi, guten Abend!",
        "Hallo", "Guten Tag", "Guten Morgen", "Hallo!", "Guten Abend", "Grüß dich", "Moin", "Servus", "Hallo, guten Tag!"),
               ("Hallo! Wie kann ich helfen?",)),
    "german_how": (("Wie gehts?", "Geht es dir gut?", "Wie geht es dir heute?", "Und wie geht es dir?",
        "Wie geht es dir?", "Wie geht's?", "Wie geht es Ihnen?", "Alles gut?", "wie gehts", "Na, wie geht es dir?"),
                   ("Mir geht es gut, danke.",)),
    "german_who": (("Wer sind Sie?", "wer bist du", "Wie heißen Sie?", "Was ist dein Name?", "Du bist wer?",
        "Wer bist du?", "Wie heißt du?", "Was bist du?", "Wie ist dein Name?", "Sag mir deinen Namen.", "Und wer bist du?"),
                   ("Ich bin core demo, ein kleines Sprachmodell.",)),
    "french": (("bonjour", "Bonjour, ça va ?", "Salut !", "Bonsoir !",
        "Bonjour", "Salut", "Bonjour!", "Bonsoir", "Coucou", "Bonjour à tous"), ("Bonjour ! Comment puis-je aider ?",)),
    "spanish": (("hola", "¡Buenos días!", "Hola, ¿qué tal?", "Buenas noches",
        "Hola", "Buenos días", "¡Hola!", "Buenas tardes", "hola!", "Hola, buenas"), ("¡Hola! ¿Cómo puedo ayudar?",)),
    "italian": (("ciao", "Buongiorno!", "Buonasera!", "Ciao a tutti",
        "Ciao", "Buongiorno", "Ciao!", "Buonasera", "Salve", "Ciao, buongiorno"), ("Ciao! Come posso aiutare?",)),
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
What should I wear in {city}?|Recommend a good {noun}.|What is the size of a {noun}?|What is the height of a {noun}?|What is the speed of a {noun}?|What is the weight of {name}?|What is the history of the {noun}?|What is the temperature of the sun?|What is the name of the {adj} king?|How can I learn to paint?|Can you help me with the {noun}?|Can you help me to write a letter?|Can you write a text about {city}?|Help me with my homework.|Explain the {noun}.|Explain how a {noun} works.|What are {noun}s made of?|Why is there a {noun} in {city}?|Write a haiku about the {noun}.|Write a letter to {name}.|Invent a {noun}.|What comes after the {noun}?|Who owns {city}?|Who is the author of {word}?|What does a {noun} cost?|How many {noun}s are in {city}?|How many people are called {name}?|Is it true that {noun}s are {adj}?|Should I buy a {noun}?|What would you do with a {noun}?|How do I learn {lang}?|What is the best {noun}?|Solve the equation x squared equals {year}.|
Where can I buy a {adj} {noun}?|How do I get from {city} to {city}?|Do {noun}s dream?|What are the news?|Who is the king of {city}?|
Can a {noun} fly?|Why?|What is love?|How do computers work?|Write a song.|Plan my holiday in {city}.|Is {city} nice?|
Which {noun} should I buy?|What is machine learning?|How does a transformer work?|What does {word} mean?|Define {word}.|
Tell me something interesting.|What is your opinion on politics?|Who is stronger, a {noun} or a {noun}?|Draw a {noun}.|
Debug my code.|How do I lose weight?|What is the speed of light?|Which team plays in {city}?|Who painted the {adj} {noun}?|
How long does it take to build a {noun}?|Compare {city} and {city}.|Give me a recipe for {noun} soup.|Who discovered {word}?|
What is the distance to the moon?|What is under the {noun}?|What is behind the {adj} {noun}?|What is the {adj} {noun}?|Where is the {noun}?|What is the name of the {noun}?|What is in a {noun}?|Which {noun} is {adj}?|When does the {noun} open?|Who has a {noun}?|Is the {noun} {adj}?|What is better, a {noun} or a {noun}?|What is your favourite {noun}?|Do you like {noun}s?|Which is the best {noun} in {city}?|What is the worst {noun}?|How heavy is a {noun}?|How much is a {noun}?|Tell me the history of {city}.|Tell me about {name}.|Who lives in {city}?|What is new in {city}?|Can you help me with my {noun}?|Make a plan for {city}.|What is {word}?|{word}|{noun}|{word} {word}|test|Test|asdf|Testing|What is the code of the {noun}?|What is the code of {name}?|How much does a {noun} cost?|{adj} {noun}|Who was {name} {word}?|Who is {name} {word}?|Translate this sentence.|What is your favourite animal?|Play a game with me.|I want to play.|Who is {word}?|Is {word} a word?|Can you drive a {noun}?|What is inside a {noun}?|How old is {name}?""".replace("\n", "").split("|")
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
    Attribute("name", ("My name's {v}.", "Hello, I'm {v}.", "This is {v}.", "{v} is my name.", "I am called {v}.", "Hello there, I am {v}.", "Hi, {v} here.", "I go by {v}.", "My friends call me {v}.",
              "My name is {v}.", "I am {v}.", "I'm {v}", "Call me {v}.", "Hello, my name is {v}.", "Hi, I am {v}!", "my name is {v}",
                       "You can call me {v}.", "People call me {v}.", "Hey, I'm {v}. Nice to meet you.", "Hi there, {v} here."),
              "Nice to meet you, {v}!",
              ("Can you tell me my name?", "Do you still know my name?", "Can you say my name?", "Which name do I have?", "Remember my name?", "What was my name?", "Do you know who I am?", "What did I say my name was?",
               "What is my name?", "What's my name?", "Do you know my name?", "Do you remember my name?", "Who am I?", "Tell me my name.",
               "How am I called?", "Say my name.", "Can you remember my name?"),
              "Your name is {v}.", "You have not told me your name yet."),
    Attribute("colour", ("{v} is the colour I like best.", "I like {v} best of all colours.", "My favorite colour is {v}.", "My favourite color: {v}", "I really like {v} as a colour.",
              "My favourite colour is {v}.", "My favorite color is {v}.", "I like the colour {v} best.", "The colour I like most is {v}.",
                         "I love the colour {v}.", "{v} is my favourite colour."),
              "{v} is a nice colour. I will remember it.",
              ("Which colour is my favourite?", "What is the colour I like best?", "What colour do I like best?", "Which colour do I like most?", "Do you know my favourite colour?", "What was my favourite colour?", "Can you remember my favourite colour?",
               "What is my favourite colour?", "What's my favorite color?", "Which colour do I like best?", "Do you remember my favourite colour?",
               "Tell me my favourite colour.", "What colour do I like most?"),
              "Your favourite colour is {v}.", "You have not told me your favourite colour yet."),
    Attribute("city", ("I am living in {v}.", "I'm from {v}.", "My home is {v}.", "I live in the city of {v}.", "{v} is my home.", "I was born in {v} and live there.", "My hometown: {v}", "The city I live in is {v}.",
              "I live in {v}.", "I am from {v}.", "My home is in {v}.", "I come from {v}.", "My city is {v}.", "My hometown is {v}."),
              "{v} sounds like a good place to live.",
              ("Where is my home?", "What city do I live in?", "In which city do I live?", "Do you know where I live?", "Can you tell me where I live?", "Where do I come from?", "What is my hometown?", "Tell me my city.",
               "Where do I live?", "Which city do I live in?", "Do you remember where I live?", "What is my city?", "Where am I from?",
               "Tell me where I live."),
              "You live in {v}.", "You have not told me where you live yet."),
    Attribute("job", ("I'm working as a {v}.", "My work: I am a {v}.", "I earn my money as a {v}.", "I am employed as a {v}.", "I am a {v} by trade.",
              "I work as a {v}.", "I am a {v}.", "My job is {v}.", "I'm a {v} by profession.", "By trade I am a {v}."),
              "Being a {v} must be interesting.",
              ("What work do I do?", "Which job do I have?", "Tell me my job.", "As what do I work?", "Do you know my job?", "What do I do?", "What was my job?", "Tell me what I work as.",
               "What is my job?", "What do I do for work?", "Do you remember my job?", "What's my job?", "What do I work as?"),
              "You work as a {v}.", "You have not told me your job yet."),
    Attribute("food", ("My favorite food is {v}.", "I like to eat {v}.", "Nothing is better than {v}.", "I love {v}.", "The best food is {v}.", "{v} is my favourite food.",
              "My favourite food is {v}.", "I love eating {v}.", "I like {v} very much.", "The food I like best is {v}.",
                       "Nothing tastes better than {v}."),
              "I hear that {v} can be very tasty.",
              ("Which food is my favourite?", "What food do I like?", "What food do I like best?", "Which food do I love?", "Tell me my favourite food.", "Do you know what I like to eat?", "What do I like best to eat?",
               "What is my favourite food?", "What do I like to eat?", "What's my favorite food?", "Do you remember my favourite food?",
               "Which food do I like best?"),
              "Your favourite food is {v}.", "You have not told me your favourite food yet."),
    Attribute("hobby", ("I like {v}.", "I love {v}.", "My favorite hobby is {v}.", "On weekends I enjoy {v}.", "I spend my free time {v}.", "{v} is my hobby.",
              "My hobby is {v}.", "I enjoy {v}.", "In my free time I like {v}.", "My favourite hobby is {v}.", "I spend my weekends {v}."),
              "{v} is a great hobby.",
              ("Which hobby do I have?", "What hobby do I have?", "What do I like to do?", "Do you know my hobby?", "Tell me what I do in my free time.", "What was my hobby?", "What is my favourite hobby?",
               "What is my hobby?", "What's my hobby?", "What do I do in my free time?", "Do you remember my hobby?", "Tell me my hobby."),
              "Your hobby is {v}.", "You have not told me your hobby yet."),
    Attribute("pet", ("I've got a {v}.", "I have a {v} at home.", "A {v} lives with me.", "I live with a {v}.", "In my home there is a {v}.", "My family has a {v}.",
              "I have a {v}.", "My pet is a {v}.", "I own a {v}.", "At home I have a {v}.", "There is a {v} in my home."),
              "A {v} is a good friend to have.",
              ("Which animal do I have?", "What animal do I have?", "Which animal lives in my home?", "Tell me my pet.", "Do you know my pet?", "Which pet lives with me?", "What animal lives with me?", "What was my pet?",
               "What pet do I have?", "Which pet do I have?", "Do you remember my pet?", "What is my pet?", "Which animal lives with me?"),
              "You have a {v}.", "You have not told me about a pet yet."),
    Attribute("number", ("My favourite number: {v}", "The number {v} brings me luck.", "My number is {v}.", "I like the number {v}.", "Remember my lucky number {v}.",
              "My lucky number is {v}.", "{v} is my lucky number.", "I think {v} brings me luck.", "My favourite number is {v}.",
                         "The number I like is {v}."),
              "I will remember the number {v}.",
              ("Do you know my lucky number?", "Which number do I like?", "What was my lucky number?", "What is my favourite number?", "Which number is my lucky number?", "Tell me my number.",
               "What is my lucky number?", "What's my lucky number?", "Which number brings me luck?", "Do you remember my number?",
               "Tell me my lucky number."),
              "Your lucky number is {v}.", "You have not told me your lucky number yet."),
    Attribute("age", ("I am {v}.", "I'm {v}.", "My age: {v}", "I am now {v} years old.", "I turned {v}.", "I am {v} years of age.",
              "I am {v} years old.", "My age is {v}.", "I'm {v} years old.", "I turned {v} this year.", "I am aged {v}."),
              "{v} is a good age.",
              ("Do you know how old I am?", "Do you know my age?", "Tell me how old I am.", "What was my age?", "How many years old am I?",
               "How old am I?", "What is my age?", "Do you remember my age?", "What's my age?", "Tell me my age."),
              "You are {v} years old.", "You have not told me your age yet."),
    Attribute("month", ("I was born in the month of {v}.", "My birthday: {v}", "In {v} I celebrate my birthday.", "I have my birthday party in {v}.", "I celebrate my birthday in {v}.",
              "My birthday is in {v}.", "I was born in {v}.", "I have my birthday in {v}.", "My birth month is {v}.", "I celebrate in {v}."),
              "I hope you have a great party in {v}.",
              ("Do you know my birthday?", "Which month is my birthday?", "When was I born?", "When do I celebrate?", "Do you remember my birthday?", "In what month is my birthday?", "Which month do I celebrate in?",
               "When is my birthday?", "In which month was I born?", "Which month is my birthday in?", "What is my birth month?",
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
    if lists.split == "train" and rng.random() < 0.25:  # what is told must be copied, not picked from the list
        return rng.choice((invented(rng), rng.choice(world_words()).lower(), rng.choice(NOUNS)))
    return rng.choice([option for option in options if lists.allows(key, option, 0.2)] or options)


def statement(rng: Random, lists: Lists) -> Turn:
    """The user tells something that needs no answer in particular."""
    text = sentence(rng, lists) if rng.random() < 0.6 else rng.choice((
        "I went to {c} {t}.", "I saw a {n} {t}.", "I have bought a {a} {n}.", "My {n} is {a}.", "I need a {n}.", "Today I was in {c}.",
        "I met {w} {t}.", "I was {p} {t}.", "{w} told me about {c}.", "I dreamed of a {a} {n}.", "I am reading a book about {c}.",
    )).format(c=lists.city(rng), t=rng.choice(TIMES), n=rng.choice(NOUNS), a=rng.choice(ADJECTIVES), w=lists.name(rng), p=rng.choice(PLACES))  # fmt: skip
    answer = "That sounds interesting. Tell me more."
    return Turn(text, answer, "The user tells me something.", ("equals", answer))


def with_an(text: str) -> str:
    """ "a engineer" -> "an engineer"."""
    return re.sub(r"\ba (?=[aeio])", "an ", text)


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]


def _pick(rng: Random, options: tuple[str, ...], split: str) -> str:
    return options[-1] if split == "heldout" else rng.choice(options[:-1])


def tell(rng: Random, attribute: Attribute, told: str, split: str) -> Turn:
    """The user tells `told`."""
    text = with_an(_upper(_pick(rng, attribute.tell, split).format(v=told)))
    answer = with_an(_upper(attribute.confirm.format(v=told)))
    return Turn(text, answer, f"The user tells me: {attribute.key} = {told}.", ("equals", answer))


def tell_two(rng: Random, first: str, second: str, values: tuple[str, str]) -> Turn:
    """The user tells two things in one sentence; the answer is about the first."""
    short = {a.key: [t for t in a.tell[:-1] if t.endswith("{v}.") and t.startswith(("I ", "My "))] for a in ATTRIBUTES}
    one, two = (rng.choice(short[key]).format(v=told) for key, told in zip((first, second), values, strict=True))
    two = two if two.startswith("I ") else "m" + two[1:]
    text = with_an(rng.choice(("", "", "Hello, ", "Hi! ")) + one[:-1] + rng.choice((" and ", ", and ", " and ")) + two)
    confirm = next(a for a in ATTRIBUTES if a.key == first).confirm
    answer = with_an(_upper(confirm.format(v=values[0])))
    return Turn(text, answer, f"The user tells me: {first} = {values[0]}, {second} = {values[1]}.", ("equals", answer))


def recall(rng: Random, attribute: Attribute, told: str | None, split: str) -> Turn:
    """The user asks for what was told, or never was (`told` None)."""
    answer = attribute.missing if told is None else with_an(attribute.recall.format(v=told))
    think = f"The {attribute.key} was not told." if told is None else f"Earlier the user told me: {attribute.key} = {told}."
    question = politely(rng, _pick(rng, attribute.ask, split), split)
    return Turn(question, answer, think, ("equals", answer), weight=20)
