"""The checker of histories, on a register that anybody can follow."""

import pytest

from tests.store.linear import Call, stuck

Register = tuple[str, int | None]
"""`("write", 3)` is answered with nothing, `("read", None)` with what was written last."""


def step(state: int, what: Register) -> tuple[int, object]:
    kind, value = what
    return (state, state) if kind == "read" else (value or 0, None)


def write(value: int, began: int, ended: int | None) -> Call[Register]:
    return Call(("write", value), began, ended)


def read(value: int, began: int, ended: int | None) -> Call[Register]:
    return Call(("read", None), began, ended, value)


POSSIBLE: dict[str, list[Call[Register]]] = {
    "nothing": [],
    "one after the other": [write(1, 0, 1), read(1, 2, 3), write(2, 4, 5), read(2, 6, 7)],
    "a read beside a write may be before it": [write(1, 0, 3), read(0, 1, 2)],
    "or after it": [write(1, 0, 3), read(1, 1, 2)],
    "writes beside each other in either order": [write(1, 0, 3), write(2, 1, 2), read(1, 4, 5)],
    "without its answer it may have happened": [write(1, 0, None), read(0, 1, 2), read(1, 3, 4)],
    "or never": [write(1, 0, None), read(0, 1, 2), read(0, 3, 4)],
}
IMPOSSIBLE: dict[str, list[Call[Register]]] = {
    "a stale read": [write(1, 0, 1), read(0, 2, 3)],
    "what nobody wrote": [write(1, 0, 1), read(2, 2, 3)],
    "there and back": [write(1, 0, 5), read(1, 1, 2), read(0, 3, 4)],
    "two who disagree": [write(1, 0, 9), write(2, 1, 8), read(1, 10, 11), read(2, 12, 13)],
    "before it began": [read(1, 0, 1), write(1, 2, None)],
}


@pytest.mark.parametrize("history", POSSIBLE.values(), ids=POSSIBLE.keys())
def test_what_could_have_been_is_accepted(history: list[Call[Register]]) -> None:
    assert stuck(history, 0, step) == ()


@pytest.mark.parametrize("history", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_what_could_not_have_been_is_refused_with_where_it_ends(history: list[Call[Register]]) -> None:
    left = stuck(history, 0, step)
    assert left
    assert set(left) <= set(history)
