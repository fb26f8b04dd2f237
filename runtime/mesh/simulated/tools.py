"""Tools in a simulated mesh: some of the words that the simulated model says are calls, so that it needs no grammar."""

from runtime.domain.call_forms import CallForm
from runtime.domain.calling import Answer, Called, Steps
from runtime.domain.tools import Tool
from runtime.engine.simulated import WORDS, SimulatedTokenizer

TOOL, CAREFUL = "look", "pay"
"""The second one only with somebody's approval."""
TOOLS = (Tool(TOOL), Tool(CAREFUL, approval=True))
_CALLS = {word: TOOL for word in WORDS[::9]} | {word: CAREFUL for word in WORDS[4::13]}


def _parse(answer: Answer) -> Steps[None]:
    word = ""
    while char := (yield from answer.next()):
        if char == " ":
            _tell(answer, word)
            word = ""
        word += char
    _tell(answer, word)


def _tell(answer: Answer, word: str) -> None:
    if word in _CALLS:
        answer.call(Called(_CALLS[word], "{}"))
    elif word:
        answer.write(word)


class CallingTokenizer(SimulatedTokenizer):
    """Its model calls, where there are tools."""

    call_form = CallForm("words", (), None, _parse, lambda _toolbox, _spell: [])
