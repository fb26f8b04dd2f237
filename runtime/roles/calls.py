"""What the tools of a request mean to its answer: what they change in the sampling, and which calls the answer holds.

The calls are a pure function of the answer's tokens and of their text, so whoever reads them again finds the same.
"""

import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from runtime.domain.call_forms import CallForm, calls_grammar
from runtime.domain.calling import CallParser, Found, quoted
from runtime.domain.grammar import MAX_GRAMMAR_CHARACTERS, Grammar, GrammarKind
from runtime.domain.sequence import Sampling
from runtime.domain.tools import Toolbox, ToolCall, ToolChoice
from runtime.errors import InvalidArgument, NotSupported
from runtime.ports import Tokenizer


def form_of(tokenizer: Tokenizer) -> CallForm:
    """Raises `NotSupported` naming `tools`."""
    form = tokenizer.call_form
    if form is None:
        raise NotSupported(f"tools are not served by this model: {tokenizer.no_tools()}", field="tools")
    return form


def equipped(sampling: Sampling, toolbox: Toolbox, tokenizer: Tokenizer) -> Sampling:
    """With what makes the answer call as asked. Raises `NotSupported` naming `tools`, `InvalidArgument` naming
    `tool_choice`."""
    if not toolbox.tools:
        return sampling
    form = form_of(tokenizer)
    if toolbox.choice is ToolChoice.NONE:
        return _uncalling(sampling, form, tokenizer)

    def spell(marker: str) -> str:
        token = tokenizer.special(marker)
        return quoted(marker) if token is None else f"<[{token}]>"

    text = calls_grammar(form, toolbox, spell)
    if text is None:
        return sampling
    if sampling.grammar is not None:
        told = "the answer cannot match the tools' grammar and another one: leave one of them out"
        raise InvalidArgument(told, field="tool_choice")
    if len(text) > MAX_GRAMMAR_CHARACTERS:
        told = f"the tools' schemas make a grammar of {len(text)} characters, the limit is {MAX_GRAMMAR_CHARACTERS}"
        raise InvalidArgument(f"{told}: name a function, or leave tool_choice and strict out", field="tool_choice")
    return replace(sampling, grammar=Grammar(GrammarKind.LARK, text))


def _uncalling(sampling: Sampling, form: CallForm, tokenizer: Tokenizer) -> Sampling:
    """The model knows its tools, and may not begin a call."""
    if form.begins is None:
        return sampling
    token = tokenizer.special(form.begins)
    banned = tuple(tokenizer.encode_within(form.begins)) if token is None else (token,)
    return replace(sampling, banned_tokens=(*sampling.banned_tokens, banned))


class CallReader:
    """One answer. `scope` names it; with its number in the answer that makes a call's id."""

    def __init__(self, tokenizer: Tokenizer, toolbox: Toolbox, scope: str) -> None:
        """Raises `NotSupported` naming `tools`."""
        self.made: list[ToolCall] = []
        self._form = form_of(tokenizer)
        self._parser = CallParser(self._form.parse, frozenset(tool.name for tool in toolbox.tools))
        self._marks = _Marks(tokenizer, self._form.markers)
        self._scope = scope
        self._most = None if toolbox.parallel else 1

    def push(self, tokens: Sequence[int], text: str) -> list[str | ToolCall]:
        """What the next tokens bring, and the text that came with them: text to give out, and calls."""
        return self._taken(self._parser.push(self._marks.push(tokens, text)))

    def finish(self) -> list[str | ToolCall]:
        return self._taken(self._parser.finish())

    def _taken(self, found: Sequence[Found]) -> list[str | ToolCall]:
        taken: list[str | ToolCall] = []
        for each in found:
            if isinstance(each, str):
                taken.append(each)
            elif len(self.made) != self._most:
                call = ToolCall(self._id(len(self.made)), each.name, each.arguments)
                self.made.append(call)
                taken.append(call)
        return taken

    def _id(self, number: int) -> str:
        digest = hashlib.blake2b(f"{self._scope}/{number}".encode(), digest_size=16).hexdigest()
        return self._form.id_prefix + digest[: self._form.id_digits]


def calls_of(
    tokenizer: Tokenizer, toolbox: Toolbox, scope: str, tokens: Sequence[int], text: str
) -> tuple[str, tuple[ToolCall, ...]]:
    """The text beside the calls of a whole answer, and these."""
    if not toolbox.callable or tokenizer.call_form is None:
        return text, ()
    reader = CallReader(tokenizer, toolbox, scope)
    found = [*reader.push(tokens, text), *reader.finish()]
    return "".join(each for each in found if isinstance(each, str)), tuple(reader.made)


class _Marks:
    """Puts markers that are tokens without text back into the text, where they stood.

    Text comes with or after its tokens, because of what may be held back; so how much of it is before a marker is
    known when it comes.
    """

    def __init__(self, tokenizer: Tokenizer, markers: Sequence[str]) -> None:
        self._hidden = {token: each for each in markers if (token := tokenizer.special(each)) is not None}
        self._decoder = tokenizer.decoder()
        self._decoded = 0
        self._given = 0
        self._waiting: deque[tuple[int, str]] = deque()

    def push(self, tokens: Sequence[int], text: str) -> str:
        if not self._hidden:
            return text
        for token in tokens:
            if token in self._hidden:
                self._waiting.append((self._decoded, self._hidden[token]))
            self._decoded += len(self._decoder.push(token))
        marked: list[str] = []
        cut = 0
        while self._waiting and self._waiting[0][0] <= self._given + len(text):
            place, marker = self._waiting.popleft()
            upto = max(place - self._given, cut)
            marked += [text[cut:upto], marker]
            cut = upto
        self._given += len(text)
        return "".join([*marked, text[cut:]])
