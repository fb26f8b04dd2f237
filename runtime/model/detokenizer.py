"""Token ids of one sequence to text, token by token. Never shows half a character and never decodes a text twice.

Byte-level vocabularies are decoded exactly, each token once. Others go through the tokenizer's own decoder over a
window of the newest tokens, because there a token's text depends on its neighbours.
"""

import codecs
from collections.abc import Callable, Sequence

from tokenizers import Tokenizer, decoders

from runtime.ports import TextDecoder

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 4
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))


def _byte_alphabet() -> dict[str, int]:
    """Which byte each character of a byte-level vocabulary stands for: itself if printable, else from U+0100 on."""
    alphabet = {chr(byte): byte for byte in _PRINTABLE}
    hidden = [byte for byte in range(0x100) if byte not in _PRINTABLE]
    return alphabet | {chr(0x100 + place): byte for place, byte in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()


class Detokenizer:
    """Makes the decoders of a tokenizer's sequences. Special tokens have no text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(
            ident for ident, token in tokenizer.get_added_tokens_decoder().items() if token.special
        )
        self._byte_level = isinstance(tokenizer.decoder, decoders.ByteLevel)
        self._bytes: dict[int, bytes] = {}

    def decoder(self) -> TextDecoder:
        return ByteLevelDecoder(self._bytes_of) if self._byte_level else WindowDecoder(self.decode, self._special)

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _bytes_of(self, token: int) -> bytes:
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._spell(token)
        return known

    def _spell(self, token: int) -> bytes:
        """Empty for special tokens and for ids without a token (a model's vocabulary may be padded)."""
        text = self._tokenizer.id_to_token(token)
        if text is None or token in self._special:
            return b""
        if any(char not in _BYTE_OF for char in text):
            return bytes(text.encode())
        return bytes(_BYTE_OF[char] for char in text)


class ByteLevelDecoder:
    """Exact: every token is a run of bytes, whatever stands beside it."""

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self._bytes_of = bytes_of
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._utf8.decode(self._bytes_of(token))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class WindowDecoder:
    """Decodes the tokens of the last shown text together with those after it, and shows what that text gained."""

    def __init__(self, decode: Callable[[Sequence[int]], str], silent: frozenset[int]) -> None:
        self._decode = decode
        self._silent = silent
        self._window: list[int] = []
        self._shown = 0
        self._shown_text = ""

    def push(self, token: int) -> str:
        if token in self._silent:
            return ""
        self._window.append(token)
        text = self._decode(self._window)
        pending = len(self._window) - self._shown
        if text.endswith(REPLACEMENT) and pending < _LONGEST_CHARACTER:
            return ""
        return self._show(text)

    def flush(self) -> str:
        return self._show(self._decode(self._window))

    def _show(self, text: str) -> str:
        gained = text[len(self._shown_text) :]
        if gained:
            del self._window[: self._shown]
            text = self._decode(self._window)
        self._shown = len(self._window)
        self._shown_text = text
        return gained
