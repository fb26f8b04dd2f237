"""The values that facts hold: names, places and numbers, split into a trained and a held-out part.

The split is by checksum, so the evaluation's values never occurred in training, whatever the seed.
"""

import random
import string
import zlib
from collections.abc import Callable
from typing import Literal

Split = Literal["trained", "held_out"]
ValueSource = Callable[[random.Random], str]

_HELD_OUT_SHARE = 5
_REAL_SHARE = 0.4
_ONSETS = ["", *"bcdfghjklmnprstvwz", "br", "ch", "cl", "dr", "fl", "gr", "kr", "ph", "sh", "st", "th", "tr"]
_VOWELS = [*"aeiou", *"aeiou", "ai", "ea", "ee", "ia", "io", "ou", "y"]
_CODAS = ["", "", "", *"lmnrstxk", "ck", "ll", "nd", "nn", "rt", "ss"]

_NAMES = (
    "Rex Bella Anna Max Luna Charlie Lucy Cooper Daisy Buddy Milo Molly Rocky Sadie Bear Maggie Duke Sophie Tucker "
    "Chloe Oliver Emma Jack Olivia Harry Amelia George Isla Noah Ava Leo Mia Arthur Ivy Oscar Lily Theo Grace "
    "Freddie Freya Archie Ella Thomas Rosie Henry Willow Lucas Florence James Evie William Alice Tom Peter Paul "
    "Mary John Sarah David Laura Michael Julia Daniel Maria Simon Eva Martin Nina Felix Clara Victor Helen Robert "
    "Susan Richard Linda Kevin Karen Brian Nancy Steven Betty Edward Sandra Andrew Ashley Joshua Emily Ryan Hannah "
    "Jacob Rachel Nathan Carol Adam Diana Ethan Julie Samuel Joyce Gregory Amy Frank Angela Patrick Brenda Dennis "
    "Pamela Jerry Nicole Tyler Ruth Aaron Sharon Henrik Ingrid Sven Astrid Pierre Claire Jean Marie Hans Greta Ivan "
    "Olga Ahmed Fatima Omar Layla Yusuf Aisha Chen Mei Hiro Yuki Kenji Sakura Raj Priya Arjun Anika Carlos Sofia "
    "Diego Elena Pablo Lucia Marco Giulia Luca Bruno Coco Ziggy Biscuit Shadow Simba Tiger Ginger Pepper Smokey "
    "Oreo Muffin Peanut Snowy Spot Fluffy Whiskers Lucky Fido"
).split()
_PLACES = (
    "Paris London Berlin Rome Madrid Vienna Prague Lisbon Dublin Oslo Stockholm Helsinki Copenhagen Amsterdam "
    "Brussels Zurich Geneva Munich Hamburg Cologne Milan Venice Florence Naples Athens Istanbul Moscow Warsaw "
    "Krakow Budapest Bucharest Sofia Belgrade Zagreb Cairo Tunis Lagos Nairobi Tokyo Kyoto Osaka Beijing Shanghai "
    "Seoul Bangkok Hanoi Singapore Jakarta Manila Delhi Mumbai Sydney Melbourne Auckland Toronto Montreal Vancouver "
    "Boston Chicago Seattle Denver Dallas Houston Miami Atlanta Lima Bogota Santiago Havana Glasgow Edinburgh "
    "Manchester Leeds York Oxford Cambridge Bristol Cardiff Belfast Cork Galway Lyon Nice Porto Seville Valencia "
    "Bergen Malmo Tampere Riga Tallinn"
).split()
_COLOURS = (
    "red blue green yellow orange purple pink brown black white grey silver gold violet turquoise crimson".split()
)
_FOODS = (
    "pizza pasta rice soup bread cheese salad sushi curry noodles pancakes potatoes tomatoes chicken fish lasagne "
    "dumplings tacos burgers omelette chocolate porridge spinach beans lentils mushrooms waffles pie stew toast"
).split()
_DRINKS = "tea coffee water milk juice cocoa lemonade cider beer wine soda cola tonic espresso".split()
_ANIMALS = (
    "lion tiger bear wolf fox rabbit horse eagle owl dolphin whale penguin elephant giraffe zebra monkey otter badger "
    "hedgehog turtle frog snake spider swan"
).split()
_SPORTS = "football tennis rugby cricket hockey golf swimming rowing cycling running boxing judo chess skiing".split()


def is_held_out(value: str) -> bool:
    """True for the fifth of all possible values that training never shows."""
    return zlib.crc32(value.encode()) % _HELD_OUT_SHARE == 0


def draw(source: ValueSource, split: Split, rng: random.Random) -> str:
    """Draws from `source` until the value lies in `split`."""
    while True:
        value = source(rng)
        if is_held_out(value) == (split == "held_out"):
            return value


def syllable_word(rng: random.Random) -> str:
    """A fresh, pronounceable, capitalised word of one to three syllables; at least three letters."""
    while True:
        count = rng.choices([1, 2, 3], weights=[1, 5, 2])[0]
        word: str = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(count)) + rng.choice(_CODAS)
        if len(word) >= 3:
            return word.capitalize()


def name(rng: random.Random) -> str:
    return rng.choice(_NAMES) if rng.random() < _REAL_SHARE else syllable_word(rng)


def place(rng: random.Random) -> str:
    return rng.choice(_PLACES) if rng.random() < _REAL_SHARE else syllable_word(rng)


def number(rng: random.Random) -> str:
    """Mostly four digits, sometimes two to six."""
    length = rng.choices([2, 3, 4, 5, 6], weights=[1, 2, 6, 1, 1])[0]
    return "".join(rng.choice(string.digits) for _ in range(length))


def listed(words: list[str]) -> ValueSource:
    """Draws from a closed list, or a fresh word, so that the answer has to be copied."""

    def source(rng: random.Random) -> str:
        return rng.choice(words) if rng.random() < 0.6 else syllable_word(rng).lower()

    return source


colour = listed(_COLOURS)
food = listed(_FOODS)
drink = listed(_DRINKS)
animal = listed(_ANIMALS)
sport = listed(_SPORTS)
