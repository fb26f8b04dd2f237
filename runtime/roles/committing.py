"""Which of a turn's output tokens stay in the session's context. A pure function of what is persisted."""

from collections.abc import Callable, Sequence

from runtime.ports import TextDecoder


def kept_tokens(tokens: Sequence[int], text: str, enders: frozenset[int], decoder: Callable[[], TextDecoder]) -> int:
    """How many of the tokens of a stopped answer, whose shown text is `text`, are the answer itself.

    A token that ended it belongs to the delta of the next turn. Of an answer that a stop string ended, or somebody,
    those count whose text begins before the shown one ends.
    """
    if tokens and tokens[-1] in enders:
        return len(tokens) - 1
    spelled, shown = decoder(), 0
    for place, token in enumerate(tokens):
        if shown >= len(text):
            return place
        shown += len(spelled.push(token))
    return len(tokens)
