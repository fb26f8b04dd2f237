"""Outputs that wait for each other, as fewer: what travels costs by the message more than by the token."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from runtime.domain.messages import AttemptFailed, Output

if TYPE_CHECKING:
    from runtime.ids import TurnId


def joined(outputs: Iterable[Output | AttemptFailed]) -> list[Output | AttemptFailed]:
    """The same for each attempt, in the same order: neighbours among the outputs of one attempt become one, but for
    those that tell more than their tokens."""
    gathered: list[list[Output] | AttemptFailed] = []
    open_: dict[TurnId, list[Output]] = {}
    for output in outputs:
        together = open_.get(output.ref.turn)
        if isinstance(output, AttemptFailed):
            gathered.append(output)
            open_.pop(output.ref.turn, None)
        elif together is not None and _follows(together[-1], output):
            together.append(output)
        else:
            open_[output.ref.turn] = together = [output]
            gathered.append(together)
    return [each if isinstance(each, AttemptFailed) else _one(each) for each in gathered]


def _follows(last: Output, output: Output) -> bool:
    told = output.handoff is not None or output.scores is not None
    alone = not (last.tokens and output.tokens) or last.index + len(last.tokens) != output.index
    return not (told or alone or last.finish) and last.ref == output.ref


def _one(outputs: list[Output]) -> Output:
    first, last = outputs[0], outputs[-1]
    if first is last:
        return first
    text, ends = "", list[int]()
    for output in outputs:
        ends += [len(text)] * (len(output.tokens) - 1) if not output.ends else [len(text) + end for end in output.ends]
        text += output.text
        ends.append(len(text))
    tokens = tuple([token for output in outputs for token in output.tokens])
    told = first.handoff, first.scores, tuple(ends[:-1]), last.promise
    return Output(first.ref, first.index, tokens, text, last.finish, *told)
