"""The facts a conversation may state, and every way to state one and to ask for it.

A statement's wording fixes its acknowledgement and a question's wording fixes its answer, so each reply has one
right text. The words before a value are the same in all statements and answers of a kind, and different from those of
every other kind: a model this small finds a fact by them. Knows nothing of conversations.
"""

import random
from dataclasses import dataclass

from runtime.model.recall import values
from runtime.model.recall.values import Split, ValueSource

UNKNOWN = "I do not know that yet."


@dataclass(frozen=True)
class Exchange:
    """A user's text and the one right reply; both may hold the field {value}."""

    user: str
    assistant: str

    def filled(self, value: str) -> "Exchange":
        return Exchange(self.user.format(value=value), self.assistant.format(value=value))


@dataclass(frozen=True)
class Kind:
    """One thing that can be known: what it is called, how it is stated and asked, where its values come from."""

    key: str
    statements: tuple[Exchange, ...]
    questions: tuple[Exchange, ...]
    source: ValueSource


@dataclass(frozen=True)
class Fact:
    """A kind with its value."""

    kind: Kind
    value: str

    def statement(self, rng: random.Random) -> Exchange:
        return rng.choice(self.kind.statements).filled(self.value)

    def question(self, rng: random.Random) -> Exchange:
        return rng.choice(self.kind.questions).filled(self.value)


def draw_fact(kind: Kind, split: Split, rng: random.Random) -> Fact:
    return Fact(kind, values.draw(kind.source, split, rng))


def unknown_question(kind: Kind, rng: random.Random) -> Exchange:
    """A question on `kind` in a conversation that never stated it."""
    return Exchange(rng.choice(kind.questions).user, UNKNOWN)


def _called(noun: str) -> Kind:
    return Kind(
        key=f"{noun} called",
        statements=(
            Exchange(f"My {noun} is called {{value}}.", f"Noted, your {noun} is called {{value}}."),
            Exchange(f"I have a {noun}. My {noun} is called {{value}}.", f"A {noun}, how nice."),
            Exchange(f"Please remember that my {noun} is called {{value}}.", "I will remember that."),
        ),
        questions=(
            Exchange(f"What is my {noun} called?", f"Your {noun} is called {{value}}."),
            Exchange(f"What is the name of my {noun}?", f"Your {noun} is called {{value}}."),
            Exchange(
                f"Do you remember what my {noun} is called?", f"Yes, you told me that your {noun} is called {{value}}."
            ),
            Exchange(f"Tell me the name of my {noun}.", f"You told me that your {noun} is called {{value}}."),
        ),
        source=values.name,
    )


def _lives(noun: str) -> Kind:
    return Kind(
        key=f"{noun} lives",
        statements=(
            Exchange(f"My {noun} lives in {{value}}.", f"Noted, your {noun} lives in {{value}}."),
            Exchange(f"Please remember that my {noun} lives in {{value}}.", "I will remember that."),
        ),
        questions=(
            Exchange(f"Where does my {noun} live?", f"Your {noun} lives in {{value}}."),
            Exchange(
                f"Do you remember where my {noun} lives?", f"Yes, you told me that your {noun} lives in {{value}}."
            ),
        ),
        source=values.place,
    )


def _number(noun: str) -> Kind:
    return Kind(
        key=noun,
        statements=(
            Exchange(f"The {noun} is {{value}}.", f"Noted, the {noun} is {{value}}."),
            Exchange(f"Please remember that the {noun} is {{value}}.", "I will remember that."),
            Exchange(f"Remember this, the {noun} is {{value}}.", f"I will remember that the {noun} is {{value}}."),
        ),
        questions=(
            Exchange(f"What is the {noun}?", f"The {noun} is {{value}}."),
            Exchange(f"Do you remember the {noun}?", f"Yes, you told me that the {noun} is {{value}}."),
            Exchange(f"Tell me the {noun}.", f"You told me that the {noun} is {{value}}."),
        ),
        source=values.number,
    )


def _favourite(noun: str, source: ValueSource) -> Kind:
    return Kind(
        key=f"favourite {noun}",
        statements=(
            Exchange(f"My favourite {noun} is {{value}}.", f"Noted, your favourite {noun} is {{value}}."),
            Exchange(f"Please remember that my favourite {noun} is {{value}}.", "I will remember that."),
        ),
        questions=(
            Exchange(f"What is my favourite {noun}?", f"Your favourite {noun} is {{value}}."),
            Exchange(
                f"Do you remember my favourite {noun}?", f"Yes, you told me that your favourite {noun} is {{value}}."
            ),
        ),
        source=source,
    )


_SELF = (
    Kind(
        key="my name",
        statements=(
            Exchange("My name is {value}.", "Nice to meet you, {value}."),
            Exchange("Please remember that my name is {value}.", "I will remember that."),
        ),
        questions=(
            Exchange("What is my name?", "Your name is {value}."),
            Exchange("What am I called?", "Your name is {value}."),
            Exchange("Do you remember my name?", "Yes, you told me that your name is {value}."),
        ),
        source=values.name,
    ),
    Kind(
        key="home",
        statements=(
            Exchange("I live in {value}.", "Noted, you live in {value}."),
            Exchange("Please remember that I live in {value}.", "I will remember that."),
        ),
        questions=(
            Exchange("Where do I live?", "You live in {value}."),
            Exchange("Do you remember where I live?", "Yes, you told me that you live in {value}."),
        ),
        source=values.place,
    ),
    Kind(
        key="birthplace",
        statements=(
            Exchange("I was born in {value}.", "Noted, you were born in {value}."),
            Exchange("Please remember that I was born in {value}.", "I will remember that."),
        ),
        questions=(
            Exchange("Where was I born?", "You were born in {value}."),
            Exchange("Do you remember where I was born?", "Yes, you told me that you were born in {value}."),
        ),
        source=values.place,
    ),
    Kind(
        key="workplace",
        statements=(
            Exchange("I work in {value}.", "Noted, you work in {value}."),
            Exchange("Please remember that I work in {value}.", "I will remember that."),
        ),
        questions=(
            Exchange("Where do I work?", "You work in {value}."),
            Exchange("Do you remember where I work?", "Yes, you told me that you work in {value}."),
        ),
        source=values.place,
    ),
)

_PETS = ("dog", "cat", "horse", "parrot", "hamster", "rabbit", "pony")
_PEOPLE = (
    "sister",
    "brother",
    "mother",
    "father",
    "daughter",
    "son",
    "friend",
    "neighbour",
    "teacher",
    "boss",
    "doctor",
)
_OWNED = ("boat", "robot", "school")
_NUMBERS = ("code", "door code", "room number", "order number", "gate code", "locker number", "bus number", "PIN")
_FAVOURITES: dict[str, ValueSource] = {
    "colour": values.colour,
    "food": values.food,
    "drink": values.drink,
    "animal": values.animal,
    "sport": values.sport,
    "city": values.place,
    "number": values.number,
    "singer": values.name,
}

KINDS: tuple[Kind, ...] = (
    *_SELF,
    *(_called(noun) for noun in (*_PETS, *_PEOPLE, *_OWNED)),
    *(_lives(noun) for noun in _PEOPLE),
    *(_number(noun) for noun in _NUMBERS),
    *(_favourite(noun, source) for noun, source in _FAVOURITES.items()),
)
