"""What a chat template writes after an answer when more is said. Found by rendering around a marker, never by reading
the template; so what was committed need not be rendered again.

Many templates do not render a longer conversation as a longer text: they strip the thinking out of earlier answers,
put a date at the top, move tools to the last question. What follows the last answer is the same all the same, and
where it is not, `why_not` says so.
"""

from collections.abc import Callable, Sequence

from runtime.errors import InvalidArgument
from runtime.model.probed import ASKED, CALL, RESULT, TOOL, Message, Tools, assistant, called, result, user

Render = Callable[[Sequence[Message], Tools], str]
"""A conversation as text, ending where the assistant begins, for which there are `tools`; raises `InvalidArgument` when
the template refuses it."""

_MARKER = "Qx7MarkedAnswer"


class DeltaRenderer:
    def __init__(self, render: Render) -> None:
        self._render = render
        self.why_not = self._probe()

    def render(self, preamble: Sequence[Message], messages: Sequence[Message], tools: Tools) -> str:
        """What follows an answer when `messages` come next; `preamble` is what the conversation began with."""
        said = [str(message) for message in (*preamble, *messages)]
        marker = _MARKER
        while any(marker in text for text in said):
            marker += "x"
        return self._after([*preamble, user("A"), assistant(marker), *messages], marker, tools)

    def why_no_results(self) -> str | None:
        """Why what tools brought cannot be told alone; None when it can."""
        try:
            short = self._after([user("A"), assistant(_MARKER), result()], _MARKER, (TOOL,))
            before = [user("A"), called(CALL), result(), assistant("B"), user("C"), assistant(_MARKER), result()]
            longer = self._after(before, _MARKER, (TOOL,))
        except InvalidArgument as error:
            return error.message.removeprefix("messages: ")
        if short != longer:
            return "what its chat template writes of a tool's result depends on the turns before it"
        if short.count(RESULT) != 1:
            return "its chat template does not render a tool's result as it is"
        return None

    def _after(self, messages: Sequence[Message], marker: str, tools: Tools = ()) -> str:
        before, found, rest = self._render(messages, tools).partition(marker)
        if not found or marker in rest or not before:
            raise InvalidArgument("messages: the chat template does not render what was answered", field="messages")
        return rest

    def _probe(self) -> str | None:
        """Whether what follows an answer depends on nothing but what is said next; else why it is of no use."""
        asked = [user(ASKED)]
        try:
            short = self._after([user("A"), assistant(_MARKER), *asked], _MARKER)
            before = [user("A"), assistant("B"), user("C"), assistant(_MARKER)]
            longer = self._after([*before, *asked], _MARKER)
        except InvalidArgument as error:
            return error.message.removeprefix("messages: ")
        if short != longer:
            return "what its chat template writes after an answer depends on the turns before it"
        if short.count(ASKED) != 1:
            return "its chat template does not render what is said next as it was said"
        return None
