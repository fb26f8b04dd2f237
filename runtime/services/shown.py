"""A session's turn as those see it who stream it: the text beside its calls, and these as they become whole. A pure
function of its events, so whoever resumes sees the same."""

from collections.abc import Callable
from dataclasses import replace

from runtime.domain.sessions import Progress, TurnEvent, TurnRecord
from runtime.domain.tools import ToolCall
from runtime.ports import Tokenizer
from runtime.roles.calls import CallReader


class ShownTurn:
    """Takes all events of a turn, from its first. What an answer may call is known when it has begun."""

    def __init__(self, tokenizer: Callable[[], Tokenizer]) -> None:
        """`tokenizer` is asked for only where there are calls to look for."""
        self._tokenizer = tokenizer
        self._reader: CallReader | None = None
        self._begun = False

    def take(self, progress: Progress) -> tuple[Progress, dict[int, list[ToolCall]], str]:
        """What is shown of its events, the calls by the `seq` of the event they are whole with, and the rest."""
        turn = progress.turn
        if not self._begun and (progress.events or turn.ending is not None):
            self._begun = True
            self._reader = self._reading(turn)
        if self._reader is None:
            return progress, {}, ""
        calls: dict[int, list[ToolCall]] = {}
        events = tuple(self._event(event, calls, self._reader) for event in progress.events)
        rest = self._reader.finish() if turn.ending is not None else []
        text = "".join(each for each in rest if isinstance(each, str))
        return replace(progress, events=events), calls, text

    def _reading(self, turn: TurnRecord) -> CallReader | None:
        tokenizer = self._tokenizer() if turn.asked.toolbox.callable else None
        if tokenizer is None or tokenizer.call_form is None:
            return None
        return CallReader(tokenizer, turn.asked.toolbox, turn.id)

    def _event(self, event: TurnEvent, calls: dict[int, list[ToolCall]], reader: CallReader) -> TurnEvent:
        found = reader.push(event.tokens, event.text)
        calls[event.seq] = [each for each in found if not isinstance(each, str)]
        return replace(event, text="".join(each for each in found if isinstance(each, str)))
