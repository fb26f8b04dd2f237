"""What a chat template writes after an answer when more is said. Found by rendering around a marker, never by reading
the template; so what was committed need not be rendered again.

Many templates do not render a longer conversation as a longer text: they strip the thinking out of earlier answers,
put a date at the top, move tools to the last question. What follows the last answer is the same all the same, and
where it is not, `why_not` says so.
"""

from collections.abc import Callable, Sequence

from runtime.errors import InvalidArgument

Message = dict[str, object]
Render = Callable[[Sequence[Message]], str]
"""A conversation as text, ending where the assistant begins; raises `InvalidArgument` when the template refuses it."""

_MARKER = "Qx7MarkedAnswer"
_ASKED = "Qx7WhatIsAskedNext"


class DeltaRenderer:
    def __init__(self, render: Render) -> None:
        self._render = render
        self.why_not = self._probe()

    def render(self, preamble: Sequence[Message], messages: Sequence[Message]) -> str:
        """What follows an answer when `messages` come next; `preamble` is what the conversation began with."""
        said = [str(message.get("content")) for message in (*preamble, *messages)]
        marker = _MARKER
        while any(marker in text for text in said):
            marker += "x"
        return self._after([*preamble, _user("A"), _assistant(marker), *messages], marker)

    def _after(self, messages: Sequence[Message], marker: str) -> str:
        before, found, rest = self._render(messages).partition(marker)
        if not found or marker in rest or not before:
            raise InvalidArgument("messages: the chat template does not render what was answered", field="messages")
        return rest

    def _probe(self) -> str | None:
        """Whether what follows an answer depends on nothing but what is said next; else why it is of no use."""
        asked = [_user(_ASKED)]
        try:
            short = self._after([_user("A"), _assistant(_MARKER), *asked], _MARKER)
            before = [_user("A"), _assistant("B"), _user("C"), _assistant(_MARKER)]
            longer = self._after([*before, *asked], _MARKER)
        except InvalidArgument as error:
            return error.message.removeprefix("messages: ")
        if short != longer:
            return "what its chat template writes after an answer depends on the turns before it"
        if short.count(_ASKED) != 1:
            return "its chat template does not render what is said next as it was said"
        return None


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}
