"""What a response gives out so far: one message with all of its text, and its calls, in the order in which they began.

A pure function of the turn's events, so whoever reads them again finds the same.
"""

from collections.abc import Sequence

from runtime.domain.sessions import Progress, TurnRecord
from runtime.domain.tools import ToolCall
from runtime.roles.calls import CallReader
from runtime.roles.gateway import GatewayRole


class Given:
    """Takes all of a turn's progress, from its first event. What an answer may call is known when it has begun."""

    def __init__(self, gateway: GatewayRole) -> None:
        self.calls: list[ToolCall] = []
        self._gateway = gateway
        self._texts: list[str] = []
        self._before: int | None = None
        self._begun = False
        self._reader: CallReader | None = None

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def message_index(self) -> int:
        """Where the message is among what is given out, or would be if it began now."""
        return len(self.calls) if self._before is None else self._before

    def call_index(self, number: int) -> int:
        """Where the call with this number is; it stays there, whatever comes after it."""
        return number + (self._before is not None and self._before <= number)

    def take(self, progress: Progress) -> list[str | ToolCall]:
        """What comes with it, in order."""
        turn = progress.turn
        if not self._begun and (progress.events or turn.ending is not None):
            self._begun = True
            self._reader = self._reading(turn)
        found: list[str | ToolCall] = []
        for event in progress.events:
            found += [event.text] if self._reader is None else self._reader.push(event.tokens, event.text)
        if turn.ending is not None and self._reader is not None:
            found += self._reader.finish()
        found = [each for each in found if each]
        self._keep(found)
        return found

    def _keep(self, found: Sequence[str | ToolCall]) -> None:
        for each in found:
            if not isinstance(each, str):
                self.calls.append(each)
                continue
            if self._before is None:
                self._before = len(self.calls)
            self._texts.append(each)

    def _reading(self, turn: TurnRecord) -> CallReader | None:
        """None where there are no calls to look for, and so no model to ask about them."""
        toolbox = turn.asked.toolbox
        if not toolbox.callable:
            return None
        tokenizer = self._gateway.served(turn.model).tokenizer
        return None if tokenizer.call_form is None else CallReader(tokenizer, toolbox, turn.id)
