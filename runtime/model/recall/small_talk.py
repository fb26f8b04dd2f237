"""What is said besides facts: greetings, questions about the model itself, and distractors that must not disturb."""

import random

from runtime.model.recall.facts import UNKNOWN, Exchange

_GREETING = "Hello, I am Baton's demo model. Tell me something and I will remember it."
_SELF = "I am Baton's demo model, a small language model that remembers what you tell it in this conversation."
_ABILITY = "I can remember names, numbers, places and favourite things that you tell me in this conversation."
_LIMIT = "I am only a small demo model. I can remember what you tell me, but I know little else."

_FIXED: dict[str, tuple[str, ...]] = {
    _GREETING: (
        "Hello.",
        "Hello!",
        "Hi.",
        "Hi!",
        "Hi there!",
        "Hey.",
        "Good morning.",
        "Good evening.",
        "Hello there.",
    ),
    _SELF: ("Who are you?", "What are you?", "What is your name?", "Are you a robot?", "Tell me about yourself."),
    _ABILITY: (
        "What can you do?",
        "What can you remember?",
        "What do you remember?",
        "Can you remember things?",
        "How can you help me?",
        "Can you help me?",
    ),
    "I am well, thank you. What would you like to tell me?": ("How are you?", "How are you today?", "Are you well?"),
    "You are welcome.": ("Thank you.", "Thanks.", "Thanks!", "Thank you!", "Thank you very much.", "Many thanks."),
    "Goodbye, and thank you for the conversation.": ("Goodbye.", "Bye.", "Bye!", "See you later.", "Good night."),
    "Very well.": ("Okay.", "OK.", "Good.", "Great!", "I see.", "Well done.", "Yes.", "No.", "Fine.", "Very good."),
    _LIMIT: (
        "Tell me a joke.",
        "Tell me a story.",
        "Write a poem.",
        "Can you write code?",
        "What is two plus two?",
        "What do you think?",
        "Sing a song.",
        "Explain the weather.",
    ),
    UNKNOWN: (
        "What time is it?",
        "What is the capital of France?",
        "How old am I?",
        "What did I eat today?",
        "What is the weather like?",
        "Who won the game?",
        "When is my birthday?",
    ),
    "I see, weather can be like that.": (
        "It is raining today.",
        "The sun is shining.",
        "It is cold outside.",
        "It is very hot today.",
        "There is snow in the garden.",
        "It was windy last night.",
    ),
    "I am sorry to hear that.": (
        "The train was late again.",
        "I am tired.",
        "I slept badly.",
        "My bicycle is broken.",
        "I have a headache.",
        "The traffic was terrible.",
        "I lost my keys.",
    ),
    "That sounds good.": (
        "I had soup for lunch.",
        "I baked bread this morning.",
        "We are having guests tonight.",
        "I am learning to play the piano.",
        "I finished my book.",
        "The garden is full of flowers.",
        "I am happy today.",
    ),
}
_EXCHANGES = tuple(Exchange(user, reply) for reply, users in _FIXED.items() for user in users)

_SUBJECTS = ("I", "We", "My aunt", "My uncle", "A man", "The children", "Somebody", "The postman")
_VERBS = ("walked to", "went to", "drove to", "ran to", "looked for", "talked about", "painted", "waited at", "visited")
_OBJECTS = (
    "the market",
    "the old bridge",
    "the river",
    "the station",
    "a museum",
    "the bakery",
    "the library",
    "a small shop",
    "the park",
    "the harbour",
    "the hill",
    "a red house",
)
_TIMES = (
    "",
    " today",
    " yesterday",
    " this morning",
    " last week",
    " on Monday",
    " on Friday",
    " in the rain",
    " again",
)
_TALE_REPLY = "I see. Please tell me more."


def small_talk(rng: random.Random) -> Exchange:
    """One fixed exchange, or a composed little tale, which is the distractor with the most words in it."""
    if rng.random() < 0.5:
        return rng.choice(_EXCHANGES)
    tale = f"{rng.choice(_SUBJECTS)} {rng.choice(_VERBS)} {rng.choice(_OBJECTS)}{rng.choice(_TIMES)}."
    return Exchange(tale, _TALE_REPLY)


def small_talk_replies() -> frozenset[str]:
    """Everything the model may say that is not about a fact."""
    return frozenset({*_FIXED, _TALE_REPLY})
