"""Asks a model for facts of held-out conversations and counts the answers that are right to the last token.

The model answers freely (greedy, up to its end-of-turn token) and is run in fp32. Knows nothing of training.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from runtime.errors import ModelError
from runtime.model.recall.conversations import Conversation, Mix
from runtime.model.recall.facts import KINDS, Exchange

Messages = Sequence[tuple[str, str]]

_MIX = Mix(state=0.45, ask=0.4, ask_unknown=0.05)
ANSWER_TOKENS = 48
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


class GreedyModel:
    """A chat model of a directory, run in fp32, that says the likeliest thing."""

    def __init__(self, model_dir: Path) -> None:
        """Raises ModelError where the directory holds no usable model."""
        transformers_logging.disable_progress_bar()
        # transformers types these two loosely: any kind of tokenizer, any kind of output.
        tokenizer: Any
        model: Any
        try:
            tokenizer = AutoTokenizer.from_pretrained(model_dir)
            model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise ModelError(f"model directory {model_dir} cannot be loaded: {error}") from error
        self.tokenizer: PreTrainedTokenizerFast = tokenizer
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self._model = model

    def answers(self, chats: Sequence[Messages]) -> list[str]:
        """The next text of each chat, up to the end token, or "..." at its end where none came in time."""
        inputs: Any = self.tokenizer(
            [self.prompt(chat) for chat in chats], padding=True, padding_side="left", return_tensors="pt"
        )
        with torch.inference_mode():
            outputs = self._model.generate(**inputs, do_sample=False, max_new_tokens=ANSWER_TOKENS)
        return [self._text(output) for output in outputs[:, inputs["input_ids"].shape[1] :].tolist()]

    def prompt(self, chat: Messages) -> str:
        """The chat as the model reads it, up to where its answer begins."""
        messages = [{"role": role, "content": content} for role, content in chat]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _text(self, generated: list[int]) -> str:
        end = self.tokenizer.eos_token_id
        length = generated.index(end) if end in generated else len(generated)
        return f"{self.tokenizer.decode(generated[:length])}{'' if end in generated else '...'}"


def evaluate(model_dir: Path, history_tokens: int = 512, questions: int = 400, seed: int = 1) -> RecallReport:
    """Asks `questions` held-out questions, each at the end of a conversation of its own of `history_tokens` or more.

    Raises ModelError where the directory holds no usable model.
    """
    model = GreedyModel(model_dir)
    recalls = _drawn(model, history_tokens, questions, seed)
    chats_at_once = max(1, _TOKENS_AT_ONCE // (history_tokens + ANSWER_TOKENS))
    answered: list[Answered] = []
    for start in range(0, questions, chats_at_once):
        part = recalls[start : start + chats_at_once]
        given = model.answers([recall.messages for recall in part])
        answered += [Answered(recall, text) for recall, text in zip(part, given, strict=True)]
    return RecallReport(history_tokens, tuple(answered))


def asked(model_dir: Path, history_tokens: int, questions: int, seed: int) -> list[tuple[int, ...]]:
    """The prompts of the questions that `evaluate` asks, as token ids. Raises `ModelError` as it does."""
    model = GreedyModel(model_dir)
    recalls = _drawn(model, history_tokens, questions, seed)
    return [tuple(model.tokenizer.encode(model.prompt(each.messages), add_special_tokens=False)) for each in recalls]


def _drawn(model: GreedyModel, history_tokens: int, questions: int, seed: int) -> list[Recall]:
    rng = random.Random(seed)
    return [held_out_recall(rng, model.tokenizer, history_tokens) for _ in range(questions)]


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


def _share(answered: Sequence[Answered]) -> float:
    return sum(one.right for one in answered) / len(answered) if answered else 0.0
