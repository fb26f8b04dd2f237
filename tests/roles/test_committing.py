"""Which output tokens stay in a session's context."""

import pytest

from runtime.engine.simulated import EOS, SimulatedTokenizer
from runtime.roles.committing import kept_tokens

ENDERS = frozenset({EOS, 300})
HELLO = tuple(b"Hello")
EURO = tuple("€".encode())


@pytest.mark.parametrize(
    ("tokens", "text", "kept"),
    [
        ((*HELLO, EOS), "Hello", 5),
        ((*HELLO, 300), "Hello", 5),
        ((*HELLO, EOS, 300), "Hello", 6),
        (HELLO, "Hello", 5),
        (HELLO, "Hel", 3),
        (HELLO, "", 0),
        ((EOS,), "", 0),
        ((), "", 0),
        ((*HELLO, *EURO), "Hello", 5),
        ((*HELLO, *EURO), "Hello€", 8),
        ((*HELLO, *EURO[:2]), "Hello", 5),
        ((*EURO, *HELLO), "€H", 4),
    ],
)
def test_an_answer_keeps_the_tokens_whose_text_was_shown(tokens: tuple[int, ...], text: str, kept: int) -> None:
    assert kept_tokens(tokens, text, ENDERS, SimulatedTokenizer().decoder) == kept
