"""Turns conversations into padded token rows with the assistant's tokens marked; knows nothing of the optimizer."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from runtime.model.recall.conversations import drill_conversation, mixed_conversation, system_text
from runtime.model.recall.facts import Exchange
from runtime.model.recall.vocabulary import ASSISTANT, BEGIN, END, SYSTEM, USER, token_id

_CONTEXT_TOKENS = 4096
_GAP_CHANCE = 0.2
_EXCHANGES_AT_ONCE = 16


@dataclass(frozen=True)
class Batch:
    """Rows of one length; every tensor is int64 of shape (rows, length), but `answers` holds flat indexes.

    `answers` are the positions in the flattened rows whose next token the loss counts, `targets` those next tokens.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    answers: torch.Tensor
    targets: torch.Tensor


class RowEncoder:
    """Encodes exchanges as the chat template renders them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._begin, self._end = token_id(tokenizer, BEGIN), token_id(tokenizer, END)
        self._system, self._user = token_id(tokenizer, SYSTEM), token_id(tokenizer, USER)
        self._assistant = token_id(tokenizer, ASSISTANT)

    def row(
        self, rng: random.Random, length: int, gap_share: float, drill_share: float
    ) -> tuple[list[int], list[int], list[bool]]:
        """One conversation cut to `length` + 1 tokens: the tokens, their positions, and which of them are answers."""
        tokens, positions, counted = [self._begin], [0], [False]
        if text := system_text(rng):
            system = [self._system, *self._backend.encode(text).ids, self._end]
            tokens += system
            positions += range(1, 1 + len(system))
            counted += [False] * len(system)
        drilled = rng.random() < drill_share
        conversation = drill_conversation(rng, length) if drilled else mixed_conversation(rng)
        spare = rng.randrange(_CONTEXT_TOKENS - length) if rng.random() < gap_share else 0
        while len(tokens) <= length:
            exchanges = [conversation.next_exchange() for _ in range(_EXCHANGES_AT_ONCE)]
            for user, assistant in self._encoded(exchanges):
                gap = rng.randrange(spare + 1) if rng.random() < _GAP_CHANCE else 0
                spare -= gap
                start = positions[-1] + 1 + gap
                turn = [self._user, *user, self._end, self._assistant, *assistant, self._end]
                tokens += turn
                positions += range(start, start + len(turn))
                counted += [False] * (len(user) + 3) + [True] * (len(assistant) + 1)
        return tokens[: length + 1], positions[: length + 1], counted[: length + 1]

    def _encoded(self, exchanges: list[Exchange]) -> Iterator[tuple[list[int], list[int]]]:
        encoded = self._backend.encode_batch([text for turn in exchanges for text in (turn.user, turn.assistant)])
        ids = [encoding.ids for encoding in encoded]
        return zip(ids[::2], ids[1::2], strict=True)

    def batch(self, rng: random.Random, rows: int, length: int, gap_share: float, drill_share: float) -> Batch:
        drawn = [self.row(rng, length, gap_share, drill_share) for _ in range(rows)]
        tokens = torch.tensor([row[0] for row in drawn])
        positions = torch.tensor([row[1][:-1] for row in drawn])
        counted = torch.tensor([row[2][1:] for row in drawn])
        answers = counted.flatten().nonzero().squeeze(1)
        return Batch(tokens[:, :-1].contiguous(), positions, answers, tokens[:, 1:].flatten()[answers])
