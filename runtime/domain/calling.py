"""Finds the calls in an answer as it comes: wherever its text is cut, they are the same.

What a form of calls looks like is in call_forms.py. What looks like a call and is none is text: nothing is swallowed,
but the white space beside a call.
"""

import json
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

from runtime.domain.tools import NAME, arguments_of, written

T = TypeVar("T")
Steps = Generator[None, str, T]
"""Takes what comes of an answer, and "" at the end."""


@dataclass(frozen=True, slots=True)
class Called:
    """`arguments` is a JSON object, as JSON."""

    name: str
    arguments: str


Found = str | Called
"""What comes out: text that is given out, and calls."""


class Answer:
    """Where a form reads from and writes to."""

    def __init__(self, names: frozenset[str]) -> None:
        """`names` are those of the tools."""
        self.names = names
        self.found: list[Found] = []
        self._text = ""
        self._place = 0
        self._ended = False
        self._space = ""
        self._after_call = False

    def next(self) -> Steps[str]:
        """The next character; "" at the end, however often it is asked."""
        while self._place == len(self._text) and not self._ended:
            self._text, self._place = (yield), 0
            self._ended = not self._text
        char = self._text[self._place : self._place + 1]
        self._place += len(char)
        return char

    def give_back(self, text: str) -> None:
        """These characters come next, once more."""
        self._text, self._place = text + self._text[self._place :], 0

    def next_solid(self) -> Steps[tuple[str, str]]:
        """White space, and what comes after it."""
        space: list[str] = []
        while (char := (yield from self.next())).isspace():
            space.append(char)
        return "".join(space), char

    def reads(self, text: str) -> Steps[bool]:
        """Whether the text comes next, in which case it is passed."""
        passed = ""
        while len(passed) < len(text):
            char = yield from self.next()
            passed += char
            if not char or not text.startswith(passed):
                self.give_back(passed)
                return False
        return True

    def json(self, first: str) -> Steps[tuple[str, bool]]:
        """A JSON object or list that begins with the character `first`, and whether it came to its end."""
        text, depth, quoted, escaped = [first], 1, False, False
        while depth:
            char = yield from self.next()
            if not char:
                return "".join(text), False
            text.append(char)
            if escaped:
                escaped = False
            elif quoted:
                escaped, quoted = char == "\\", char != '"'
            elif char == '"':
                quoted = True
            else:
                depth += (char in "{[") - (char in "}]")
        return "".join(text), True

    def text_until(self, marker: str) -> Steps[bool]:
        """Give out text up to a marker, and pass that; false when there is none up to the end."""
        held = ""
        while held != marker:
            if not held:
                self.write(self._before(marker[0]))
            char = yield from self.next()
            if not char:
                self.write(held)
                return False
            held += char
            while not marker.startswith(held):
                self.write(held[0])
                held = held[1:]
        return True

    def _before(self, stop: str) -> str:
        """Pass what is here before a character."""
        found = self._text.find(stop, self._place)
        begin, self._place = self._place, len(self._text) if found < 0 else found
        return self._text[begin : self._place]

    def write(self, text: str) -> None:
        """Give out text; the white space at its end waits for what follows."""
        bare = text.rstrip()
        if bare:
            self.found.append(self._space + bare)
            self._space, self._after_call = "", False
        self._space += text[len(bare) :]

    def call(self, *calls: Called) -> None:
        self.found.extend(calls)
        self._space, self._after_call = "", True

    def end(self) -> None:
        if self._space and not self._after_call:
            self.found.append(self._space)
        self._space = ""


class CallParser:
    """One answer. `parse` is the form's."""

    def __init__(self, parse: Callable[[Answer], Steps[None]], names: frozenset[str]) -> None:
        self._answer = Answer(names)
        self._steps = parse(self._answer)
        self._over = False
        self._step(None)

    def push(self, text: str) -> list[Found]:
        if text:
            self._step(text)
        return self._taken()

    def finish(self) -> list[Found]:
        """What was held back, at the end."""
        self._step("")
        assert self._over, "a form ends with its answer"
        self._answer.end()
        return self._taken()

    def _step(self, text: str | None) -> None:
        if self._over:
            return
        try:
            if text is None:
                next(self._steps)
            else:
                self._steps.send(text)
        except StopIteration:
            self._over = True

    def _taken(self) -> list[Found]:
        """Text that is together in one."""
        found, self._answer.found = self._answer.found, []
        joined: list[Found] = []
        for each in found:
            if isinstance(each, str) and joined and isinstance(joined[-1], str):
                joined[-1] += each
            else:
                joined.append(each)
        return joined


def call_in(text: str) -> Called | None:
    """The call that a JSON object says: its `name`, and its `arguments` or `parameters`."""
    return None if (said := arguments_of(text, strict=False)) is None else _call(said)


def calls_in(text: str) -> list[Called] | None:
    """The calls of a JSON list, or of a lone object; None when one of them is none."""
    if not text.startswith("["):
        lone = call_in(text)
        return None if lone is None else [lone]
    wrapped = arguments_of(f'{{"calls": {text}}}', strict=False)
    listed = wrapped["calls"] if wrapped else None
    if not isinstance(listed, list) or not listed:
        return None
    calls = [_call(each) if isinstance(each, dict) else None for each in listed]
    return [call for call in calls if call is not None] if None not in calls else None


def _call(said: dict[str, object]) -> Called | None:
    name = said.get("name")
    arguments = said.get("arguments", said.get("parameters", {}))
    if isinstance(arguments, str):  # some write the JSON of them
        arguments = arguments_of(arguments, strict=False)
    if not isinstance(name, str) or not NAME.fullmatch(name) or not isinstance(arguments, dict):
        return None
    return Called(name, written(arguments))


def quoted(text: str) -> str:
    """As a literal of a grammar in Lark's notation."""
    return json.dumps(text)
