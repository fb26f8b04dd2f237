"""What an answer must match from its first character to its last. Names it; never compiles it."""

import enum
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from runtime.domain.sampling import Rule

MAX_GRAMMAR_CHARACTERS = 16_384
MAX_CHOICES = 1024


class GrammarKind(enum.StrEnum):
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"
    LARK = "lark"


@dataclass(frozen=True, slots=True)
class Grammar:
    """`text` is a JSON schema, a regular expression, a JSON list of strings to choose from, or a context-free grammar
    in Lark's notation, in the dialects of llguidance."""

    kind: GrammarKind
    text: str = field(repr=False)

    def rules(self) -> tuple[Rule, ...]:
        size, rule = len(self.text), f"has a text of 1 to {MAX_GRAMMAR_CHARACTERS} characters"
        sized: Rule = ("grammar", size, 1 <= size <= MAX_GRAMMAR_CHARACTERS, rule)
        if self.kind is not GrammarKind.CHOICE:
            return (sized,)
        count = len(self.choices) if sized[2] else 1
        return (sized, ("grammar", count, 1 <= count <= MAX_CHOICES, f"has 1 to {MAX_CHOICES} choices"))

    @property
    def choices(self) -> list[str]:
        """Of a grammar of the kind CHOICE."""
        texts: list[str] = json.loads(self.text)
        return texts


def one_of(texts: Sequence[str]) -> Grammar:
    return Grammar(GrammarKind.CHOICE, json.dumps(list(texts)))


ANY_OBJECT = Grammar(GrammarKind.JSON_SCHEMA, '{"type": "object"}')
