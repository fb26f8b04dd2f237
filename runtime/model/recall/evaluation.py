"""Asks a model for facts of held-out conversations and counts the answers that are right to the last token.

The model answers freely (greedy, up to its end-of-turn token) and is run in fp32. Knows nothing of training.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from runtime.errors import ModelError
from runtime.model.recall.conversations import Conversation, Mix
from runtime.model.recall.facts import KINDS, Exchange

_MIX = Mix(state=0.45, ask=0.4, ask_unknown=0.05)
_ANSWER_TOKENS = 48
_TOKENS_AT_ONCE = 16_384


@dataclass(frozen=True)
class Recall:
    """One held-out question: the messages with the question as the last, and the right answer.

    `history_tokens` counts what the chat template renders before the question, `distance_tokens` the part of it that
    follows the statement asked for.
    """

    messages: tuple[tuple[str, str], ...]
    answer: str
    history_tokens: int
    distance_tokens: int


@dataclass(frozen=True)
class Answered:
    recall: Recall
    given: str

    @property
    def right(self) -> bool:
        return self.given == self.recall.answer


@dataclass(frozen=True)
class RecallReport:
    """Every question of an evaluation with the model's answer."""

    history_tokens: int
    answered: tuple[Answered, ...]

    @property
    def questions(self) -> int:
        return len(self.answered)

    @property
    def exact(self) -> float:
        """The share of the questions answered right to the last token."""
        return _share(self.answered)

    @property
    def by_distance(self) -> dict[str, float]:
        """The exact share by how many tokens ago the fact was stated, in quarters of the history; empty ones left out.

        A key reads "0-127".
        """
        width = max(1, self.history_tokens // 4)
        parts: dict[str, float] = {}
        for start in range(0, self.history_tokens, width):
            part = [one for one in self.answered if start <= one.recall.distance_tokens < start + width]
            if part:
                parts[f"{start}-{start + width - 1}"] = _share(part)
        return parts


def evaluate(model_dir: Path, history_tokens: int = 512, questions: int = 400, seed: int = 1) -> RecallReport:
    """Asks `questions` held-out questions, each at the end of a conversation of its own of `history_tokens` or more.

    Raises ModelError where the directory holds no usable model.
    """
    tokenizer, model = _load(model_dir)
    rng = random.Random(seed)
    recalls = [held_out_recall(rng, tokenizer, history_tokens) for _ in range(questions)]
    rows = max(1, _TOKENS_AT_ONCE // (history_tokens + _ANSWER_TOKENS))
    answered = [
        one for start in range(0, questions, rows) for one in _ask(model, tokenizer, recalls[start : start + rows])
    ]
    return RecallReport(history_tokens, tuple(answered))


def held_out_recall(rng: random.Random, tokenizer: PreTrainedTokenizerFast, history_tokens: int) -> Recall:
    """A conversation over held-out values that states one fact at a uniformly drawn place and never asks for it.

    The fact may have been stated before with another value, or be corrected later: the last value is the right one.
    """
    kind = rng.choice(KINDS)
    conversation = Conversation(rng, "held_out", _MIX, never_asked=frozenset({kind.key}))
    place = rng.randrange(history_tokens)
    length, stated_at, planted, fact = 1, 0, False, None
    messages: list[tuple[str, str]] = []
    while length < history_tokens or not planted:
        due = not planted and length >= place
        planted = planted or due
        exchange = conversation.state(kind) if due else conversation.next_exchange()
        messages += [("user", exchange.user), ("assistant", exchange.assistant)]
        length += _turn_tokens(tokenizer, exchange)
        if conversation.facts.get(kind.key) is not fact:
            fact, stated_at = conversation.facts[kind.key], length
    question = conversation.ask([kind.key])
    return Recall((*messages, ("user", question.user)), question.assistant, length, length - stated_at)


def _turn_tokens(tokenizer: PreTrainedTokenizerFast, exchange: Exchange) -> int:
    """Both texts, and the role and end tokens around each."""
    return len(tokenizer.encode(exchange.user)) + len(tokenizer.encode(exchange.assistant)) + 4


def _ask(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, recalls: list[Recall]) -> Iterator[Answered]:
    chats = [[{"role": role, "content": content} for role, content in recall.messages] for recall in recalls]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, padding_side="left", return_dict=True, return_tensors="pt"
    )
    with torch.inference_mode():
        outputs = model.generate(**inputs, do_sample=False, max_new_tokens=_ANSWER_TOKENS)
    prompt_tokens = inputs["input_ids"].shape[1]
    for recall, output in zip(recalls, outputs.tolist(), strict=True):
        yield Answered(recall, _answer(tokenizer, output[prompt_tokens:]))


def _answer(tokenizer: PreTrainedTokenizerFast, generated: list[int]) -> str:
    """The text before the end token; with the special tokens left in where the model never ended its turn."""
    end = tokenizer.eos_token_id
    if end not in generated:
        return tokenizer.decode(generated) + " [no end]"
    return tokenizer.decode(generated[: generated.index(end)])


def _load(model_dir: Path) -> tuple[PreTrainedTokenizerFast, PreTrainedModel]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load the model of {model_dir}: {error}", field="model_dir") from error
    return tokenizer, model.eval()


def _share(answered: tuple[Answered, ...] | list[Answered]) -> float:
    return sum(one.right for one in answered) / len(answered) if answered else 0.0
