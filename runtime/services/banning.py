"""Bad words as token sequences, spelled by the model's tokenizer. Never sees an answer."""

from collections.abc import Sequence

from runtime.domain.sampling import MAX_BANNED_LENGTH
from runtime.errors import InvalidArgument
from runtime.ports import Tokenizer

MAX_BAD_WORDS = 64
MAX_BAD_WORD_CHARACTERS = 128
_FIELD = "bad_words"


def banned_spellings(words: Sequence[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Each word alone and after a space, as vLLM takes `bad_words`; a word that a longer token holds is not found.

    Raises `InvalidArgument` naming `bad_words`.
    """
    if len(words) > MAX_BAD_WORDS:
        raise InvalidArgument(f"{_FIELD} takes at most {MAX_BAD_WORDS} words, got {len(words)}", field=_FIELD)
    spellings: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = word.lstrip()
        if not bare or len(word) > MAX_BAD_WORD_CHARACTERS:
            rule = f"takes words of 1 to {MAX_BAD_WORD_CHARACTERS} characters"
            raise InvalidArgument(f"{_FIELD} {rule}, got {word[:40]!r}", field=_FIELD)
        for text in (bare, f" {bare}"):
            tokens = tuple(tokenizer.encode_within(text))
            if not 1 <= len(tokens) <= MAX_BANNED_LENGTH:
                rule = f"takes words of 1 to {MAX_BANNED_LENGTH} tokens"
                raise InvalidArgument(f"{_FIELD} {rule}, {word[:40]!r} has {len(tokens)}", field=_FIELD)
            spellings[tokens] = None
    return tuple(spellings)
