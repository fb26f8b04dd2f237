"""What an answer shows of its own prompt: its text, and its log-probabilities as OpenAI and as vLLM write them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runtime.domain.scoring import PromptScores
from runtime.errors import Internal
from runtime.ports import Tokenizer
from runtime.services.openai.spelling import Spelling

# JSON has no infinity; OpenAI writes this for a token that could not have been chosen.
_IMPOSSIBLE = -9999.0


def finite(logprob: float) -> float:
    return max(logprob, _IMPOSSIBLE)


def text_of(tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    decoder = tokenizer.decoder()
    return "".join([decoder.push(token) for token in tokens]) + decoder.flush()


@dataclass(slots=True)
class ShownPrompt:
    """`echo` is the text that an answer begins with. `columns` asks for OpenAI's columns of it, with so many of the
    likeliest tokens in each place; `listed` for vLLM's `prompt_logprobs`. `scores` come with the first token."""

    tokens: Sequence[int]
    spelling: Spelling
    echo: str = ""
    columns: int | None = None
    listed: int | None = None
    scores: PromptScores | None = None

    def as_columns(self) -> dict[str, list[Any]]:
        """Nothing comes before the first token, so that it has no probability."""
        texts = [self.spelling.text(token) for token in self.tokens]
        offsets, offset = [], 0
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        scores = self._known()
        return {
            "tokens": texts,
            "token_logprobs": [None, *map(finite, scores.logprobs)],
            "top_logprobs": [None, *(self._top(place, self.columns or 0) for place in range(len(scores.logprobs)))],
            "text_offset": offsets,
        }

    def as_list(self) -> list[dict[str, dict[str, object]] | None]:
        """For each token itself and the likeliest in its place, by their ids: log-probability, rank and text."""
        scores = self._known()
        return [None, *(self._ranked(place, scores) for place in range(len(scores.logprobs)))]

    def _ranked(self, place: int, scores: PromptScores) -> dict[str, dict[str, object]]:
        mine = (self.tokens[place + 1], scores.logprobs[place])
        likeliest = scores.likeliest(place)[: self.listed]
        ranked = [*((each, rank) for rank, each in enumerate(likeliest, 1)), (mine, scores.ranks[place])]
        return {
            str(token): {"logprob": finite(logprob), "rank": rank, "decoded_token": self.spelling.text(token)}
            for (token, logprob), rank in ranked
        }

    def _top(self, place: int, count: int) -> dict[str, float]:
        """The likeliest tokens, and the prompt's own even if it is none of them."""
        scores = self._known()
        mine = (self.tokens[place + 1], scores.logprobs[place])
        shown = (*scores.likeliest(place)[:count], mine)
        return {self.spelling.text(token): finite(logprob) for token, logprob in shown}

    def _known(self) -> PromptScores:
        if self.scores is None or len(self.scores.logprobs) != len(self.tokens) - 1:
            raise Internal("the decode worker gave no log-probabilities of the prompt")
        return self.scores
