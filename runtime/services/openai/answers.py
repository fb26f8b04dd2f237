"""The JSON of answers, whole and in pieces, as OpenAI documents it. Never reads a stream or a socket.

The events of a stream differ in little, so each is put together around the JSON of its text. All JSON here is ASCII:
some clients take other characters for ends of lines.

Beyond OpenAI's shape a whole answer and the chunks with a `finish_reason` have a `baton` object: `attempts`; `handoff`,
how the prompt got its KV (the fields of runtime.domain.messages.Handoff); and `route`, what its worker was chosen for
(those of runtime.domain.routing.Estimate), null where nothing was weighed.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from runtime.domain.generation import Delta, Handoffs
from runtime.domain.routing import Estimate, rounded
from runtime.domain.sequence import FinishReason, Sampled
from runtime.domain.tools import ToolCall
from runtime.roles.calls import CallReader
from runtime.services.openai.prompts import ShownPrompt, finite
from runtime.services.openai.spelling import Spelling

DONE = "data: [DONE]\n\n"
_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Head:
    """What all chunks of one answer repeat. `created` is unix seconds."""

    id: str
    created: int
    model: str
    fingerprint: str

    def of(self, kind: str) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


class Tally:
    """What an answer took, gathered from its deltas. `withheld` are tokens that were made for it and not given."""

    def __init__(self, prompt_tokens: int) -> None:
        self.finish: FinishReason | None = None
        self.withheld = 0
        self._prompt = prompt_tokens
        self._completion = 0
        self._attempts = 1
        self._handoffs = Handoffs()
        self._why: Estimate | None = None

    def add(self, delta: Delta) -> None:
        assert delta.finish is not FinishReason.CANCELLED, "a client that waits did not cancel"
        self.finish = delta.finish
        self._completion += len(delta.tokens)
        self._attempts = delta.attempt
        self._handoffs.add(delta)
        if delta.handoff is not None:
            self._why = delta.why

    def usage(self, *others: "Tally") -> Json:
        """With those of the `others` that answer the same prompt, which counts once."""
        completion = self.withheld + self._completion + sum(other._completion for other in others)
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": completion,
            "total_tokens": self._prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self._handoffs.cached_tokens(self._prompt)},
        }

    def baton(self) -> Json:
        newest = self._handoffs.newest
        return {
            "attempts": self._attempts,
            "handoff": asdict(newest) if newest else None,
            "route": None if self._why is None else rounded(self._why),
        }


class Answer(ABC):
    """One answer, of several perhaps: the events of its stream, or its choice in the whole. `index` is that of the
    choice."""

    ids: ClassVar[str]
    chunk_kind: ClassVar[str]
    around_text: ClassVar[tuple[str, str]]

    def __init__(
        self,
        head: Head,
        spelling: Spelling,
        prompt: ShownPrompt,
        *,
        logprobs: bool,
        usage_asked: bool,
        index: int = 0,
    ) -> None:
        self.logprobs = logprobs
        self.prompt = prompt
        self.index = index
        self._head = head
        self._reader: CallReader | None = None
        self._told = 0
        self._spelling = spelling
        self._start = f"data: {_json(head.of(self.chunk_kind))[:-1]},"
        self._end = ',"usage":null}\n\n' if usage_asked else "}\n\n"
        before, after = self.around_text
        self._before_text = f'{self._start}"choices":[{{"index":{index},{before}'
        self._before_logprobs = f'{after},"logprobs":'
        self._before_end = ',"finish_reason":null}]'
        self._after_text = f"{self._before_logprobs}null{self._before_end}{self._end}"

    @property
    def named(self) -> str:
        """A name that no other answer has."""
        return f"{self._head.id}/{self.index}"

    def read(self, reader: CallReader) -> None:
        """Calls are looked for, from its beginning."""
        self._reader = reader

    def pieces(self, delta: Delta) -> str:
        """An event for each token that completes text; with log-probabilities for each token. Where calls are looked
        for, one for each that is whole, and none with its text."""
        if self._reader is not None:
            explained = [self._explained(token, "") for token in delta.tokens] if self.logprobs else []
            found = _read(self._reader, delta.tokens, delta.text, ends=delta.finish is not None)
            return "".join(explained + [self._found(each) for each in found])
        if not delta.tokens:
            return self._piece(delta.text) if delta.text else ""
        if not self.logprobs:
            return "".join([self._piece(text) for text in delta.texts() if text])
        return "".join(map(self._explained, delta.tokens, delta.texts()))

    def _piece(self, text: str) -> str:
        return f"{self._before_text}{_json(text)}{self._after_text}"

    def _found(self, found: str | ToolCall) -> str:
        if isinstance(found, str):
            return self._piece(found)
        called = {"index": self._told, **_called(found)}
        self._told += 1
        choice = {"index": self.index, "delta": {"tool_calls": [called]}, "logprobs": None, "finish_reason": None}
        return f'{self._start}"choices":[{_json(choice)}]{self._end}'

    def _finish(self, tally: Tally) -> str | None:
        """As OpenAI has it: an answer that ended by itself, with calls, ended because of them."""
        called = self._reader is not None and self._reader.made and tally.finish is FinishReason.STOP
        return "tool_calls" if called else tally.finish

    def _explained(self, token: Sampled, text: str) -> str:
        shown = _json(self.logprobs_of((token,)))
        return f"{self._before_text}{_json(text)}{self._before_logprobs}{shown}{self._before_end}{self._end}"

    def closing(self, tally: Tally) -> str:
        choice = {"index": self.index, **self._last_choice(), "finish_reason": self._finish(tally)}
        return f'{self._start}"choices":[{_json(choice)}],"baton":{_json(tally.baton())}{self._end}'

    def usage(self, tallies: Sequence[Tally]) -> str:
        first, *others = tallies
        return f'{self._start}"choices":[],"usage":{_json(first.usage(*others))}}}\n\n'

    def choice(self, text: str, tokens: Sequence[Sampled], tally: Tally) -> Json:
        logprobs = self.logprobs_of(tokens) if self.logprobs else None
        if self._reader is not None:
            found = _read(self._reader, tokens, text, ends=True)
            text = "".join(each for each in found if isinstance(each, str))
        whole = self._whole_choice(text)
        return {"index": self.index, **whole, "logprobs": logprobs, "finish_reason": self._finish(tally)}

    def whole(self, choices: Sequence[Json], tallies: Sequence[Tally]) -> bytes:
        """The response with all `choices`; `baton` is of the first."""
        first, *others = tallies
        more = {"choices": choices, "usage": first.usage(*others), "baton": first.baton()}
        return _json(self._head.of(self.whole_kind) | more | self._beside_choices()).encode()

    def _beside_choices(self) -> Json:
        return {}

    whole_kind: ClassVar[str]

    @abstractmethod
    def opening(self) -> str:
        """What comes before the first piece."""

    @abstractmethod
    def logprobs_of(self, tokens: Sequence[Sampled]) -> Json:
        """The log-probabilities of the next tokens of the answer."""

    @abstractmethod
    def _last_choice(self) -> Json: ...

    @abstractmethod
    def _whole_choice(self, text: str) -> Json: ...


def _read(reader: CallReader, tokens: Sequence[Sampled], text: str, *, ends: bool) -> list[str | ToolCall]:
    found = reader.push([sampled.token for sampled in tokens], text)
    return found + reader.finish() if ends else found


def _called(call: ToolCall) -> Json:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


class ChatAnswer(Answer):
    ids = "chatcmpl"
    whole_kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    around_text = ('"delta":{"content":', "}")

    def opening(self) -> str:
        start = '"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
        choice = f'{{"index":{self.index},{start}'
        return f'{self._start}"choices":[{choice}]{self._end}'

    def logprobs_of(self, tokens: Sequence[Sampled]) -> Json:
        return {
            "content": [
                {
                    **self._entry(sampled.token, sampled.logprob),
                    "top_logprobs": [self._entry(*each) for each in sampled.top],
                }
                for sampled in tokens
            ],
            "refusal": None,
        }

    def _entry(self, token: int, logprob: float) -> Json:
        spelling = self._spelling
        return {"token": spelling.text(token), "logprob": finite(logprob), "bytes": spelling.utf8(token)}

    def _last_choice(self) -> Json:
        return {"delta": {}, "logprobs": None}

    def _whole_choice(self, text: str) -> Json:
        message: Json = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
        calls = [] if self._reader is None else self._reader.made
        if calls:
            message |= {"content": text or None, "tool_calls": [_called(call) for call in calls]}
        return {"message": message}

    def _beside_choices(self) -> Json:
        return {} if self.prompt.listed is None else {"prompt_logprobs": self.prompt.as_list()}


class CompletionAnswer(Answer):
    ids = "cmpl"
    whole_kind = "text_completion"
    chunk_kind = "text_completion"
    around_text = ('"text":', "")

    def __init__(
        self,
        head: Head,
        spelling: Spelling,
        prompt: ShownPrompt,
        *,
        logprobs: bool,
        usage_asked: bool,
        index: int = 0,
    ) -> None:
        super().__init__(head, spelling, prompt, logprobs=logprobs, usage_asked=usage_asked, index=index)
        self._offset = len(prompt.echo)
        self._echoed = not prompt.echo

    def opening(self) -> str:
        return ""

    def pieces(self, delta: Delta) -> str:
        """The first comes after the prompt, where that is echoed."""
        if self._echoed:
            return super().pieces(delta)
        self._echoed = True
        columns = _json(None if self.prompt.columns is None else self.prompt.as_columns())
        echo = f"{self._before_text}{_json(self.prompt.echo)}{self._before_logprobs}{columns}"
        return f"{echo}{self._before_end}{self._end}{super().pieces(delta)}"

    def logprobs_of(self, tokens: Sequence[Sampled]) -> Json:
        """Offsets count characters from the beginning of the text."""
        texts = [self._spelling.text(sampled.token) for sampled in tokens]
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [finite(sampled.logprob) for sampled in tokens],
            "top_logprobs": [self._top(sampled) for sampled in tokens],
            "text_offset": offsets,
        }

    def _top(self, sampled: Sampled) -> dict[str, float]:
        """The likeliest tokens, and the chosen one even if it is none of them."""
        chosen = (sampled.token, sampled.logprob)
        return {self._spelling.text(token): finite(logprob) for token, logprob in (*sampled.top, chosen)}

    def _last_choice(self) -> Json:
        return {"text": "", "logprobs": None}

    def choice(self, text: str, tokens: Sequence[Sampled], tally: Tally) -> Json:
        choice = super().choice(text, tokens, tally)
        if self.prompt.columns is not None:
            before = self.prompt.as_columns()
            choice["logprobs"] = {name: before[name] + column for name, column in choice["logprobs"].items()}
        if self.prompt.listed is not None:
            choice["prompt_logprobs"] = self.prompt.as_list()
        return choice

    def _whole_choice(self, text: str) -> Json:
        return {"text": self.prompt.echo + text}
