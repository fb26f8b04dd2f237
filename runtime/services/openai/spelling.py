"""The text of single tokens, as log-probabilities show it. Never the text of an answer: that comes from the worker."""

from runtime.ports import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Spelling:
    """Spells the tokens of one model, each once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def text(self, token: int) -> str:
        """Replacement characters stand for a part of a character; a special token has no text."""
        known = self._known.get(token)
        if known is None:
            decoder = self._tokenizer.decoder()
            known = self._known[token] = decoder.push(token) + decoder.flush()
        return known

    def utf8(self, token: int) -> list[int] | None:
        """The bytes of the text, or None for a token that is not whole characters."""
        text = self.text(token)
        return None if _REPLACEMENT in text else list(text.encode())
