"""`baton model eval --over`: which part of the answers stay the same when pages lose something on their way."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer


@dataclass(frozen=True, slots=True)
class Agreement:
    """`same` is the share of answers that are those over pages that lost nothing, to the last token; `bytes` of payload
    travelled, and `whole` over those."""

    way: str
    same: float
    questions: int
    bytes: int
    whole: int

    def __str__(self) -> str:
        return (
            f"{self.way}: {self.same:.1%} of {self.questions} answers are those over pages that lost nothing, "
            f"of {self.bytes / self.whole:.2f} of the bytes"
        )


def compared(path: Path, ways: Sequence[str], history: int, questions: int, seed: int) -> list[Agreement]:
    """One for each of `ways`. Raises `BadParameter` for one that is not known."""
    return list(_compared(path, ways, history, questions, seed)) if ways else []


def _compared(path: Path, ways: Sequence[str], history: int, questions: int, seed: int) -> Iterator[Agreement]:
    from runtime.engine.agreement import WAYS, answers_over
    from runtime.model.recall.evaluation import ANSWER_TOKENS, asked

    unknown = [way for way in ways if way not in WAYS]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is no way; there are {', '.join(WAYS)}", param_hint="--over")
    prompts, threads = asked(path, history, questions, seed), os.cpu_count() or 1
    exact = answers_over(path, WAYS["plain"], prompts, ANSWER_TOKENS, threads)
    for name in ways:
        found = answers_over(path, WAYS[name], prompts, ANSWER_TOKENS, threads)
        yield Agreement(name, found.same(exact) / questions, questions, found.bytes, exact.bytes)
