"""Incremental decoding: the pieces add up to the whole text, and no piece has half a character."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from runtime.model.detokenizer import REPLACEMENT, ByteLevelDecoder, Detokenizer, WindowDecoder
from runtime.model.tokenizer import Tokenizer as CheckpointTokenizer
from runtime.ports import TextDecoder

# Without the special tokens' names: Hypothesis finds those in the source, and they have no text.
TEXTS = (st.text(max_size=40) | st.text("aé東京🎉👩\u200d🚀 \n", max_size=40)).filter(lambda text: "<" not in text)


def sentencepiece_like() -> Tokenizer:
    """Few characters of its own; all else falls back to bytes (id 3 + byte), and words begin with U+2581."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefgh", "▁a", "▁ab", "ab"]
    vocab = {piece: ident for ident, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("a", "b"), ("▁a", "b")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in ("<s>", "</s>")])
    return tokenizer


SENTENCEPIECE = sentencepiece_like()


@pytest.fixture(scope="module")
def byte_level(llama: Path) -> CheckpointTokenizer:
    return CheckpointTokenizer(llama)


def pieces(decoder: TextDecoder, tokens: list[int]) -> list[str]:
    return [*(decoder.push(token) for token in tokens), decoder.flush()]


@given(tokens=st.lists(st.integers(0, 530), max_size=60))
def test_random_byte_level_tokens_add_up_to_the_whole(byte_level: CheckpointTokenizer, tokens: list[int]) -> None:
    decoder = byte_level.decoder()
    assert isinstance(decoder, ByteLevelDecoder)
    assert "".join(pieces(decoder, tokens)) == byte_level.decode(tokens)


@given(text=TEXTS)
def test_byte_level_text_arrives_in_whole_characters(byte_level: CheckpointTokenizer, text: str) -> None:
    decoder = byte_level.decoder()
    shown = [decoder.push(token) for token in byte_level.encode(text)]
    assert "".join(shown) == text
    assert decoder.flush() == ""


@given(text=TEXTS.filter(lambda text: REPLACEMENT not in text))
def test_byte_fallback_text_arrives_in_whole_characters(text: str) -> None:
    tokens = SENTENCEPIECE.encode(text).ids
    decoder = Detokenizer(SENTENCEPIECE).decoder()
    assert isinstance(decoder, WindowDecoder)
    shown = pieces(decoder, tokens)
    assert "".join(shown) == SENTENCEPIECE.decode(tokens)
    assert REPLACEMENT not in "".join(shown)


@given(tokens=st.lists(st.integers(0, 2) | st.integers(259, len(SENTENCEPIECE.get_vocab()) - 1), max_size=40))
def test_random_tokens_of_a_window_add_up_to_the_whole(tokens: list[int]) -> None:
    decoder = Detokenizer(SENTENCEPIECE).decoder()
    assert "".join(pieces(decoder, tokens)) == SENTENCEPIECE.decode(tokens)


def test_a_character_is_shown_with_its_last_byte() -> None:
    decoder = Detokenizer(SENTENCEPIECE).decoder()
    tokens = SENTENCEPIECE.encode("a🎉b").ids
    assert [decoder.push(token) for token in tokens] == ["a", "", "", "", "🎉", "b"]


def test_bytes_that_never_become_a_character_are_shown_in_the_end() -> None:
    decoder = Detokenizer(SENTENCEPIECE).decoder()
    lone = 3 + 0xF0
    assert [decoder.push(lone), decoder.push(lone), decoder.flush()] == ["", "", REPLACEMENT * 2]


def test_special_tokens_between_the_bytes_of_a_character_do_not_break_it() -> None:
    decoder = Detokenizer(SENTENCEPIECE).decoder()
    first, *others = SENTENCEPIECE.encode("東").ids[1:]
    end = 2
    assert "".join(decoder.push(token) for token in (first, end, end, end, end, *others)) == "東"


def test_a_window_stays_short_however_long_the_text() -> None:
    decoded: list[int] = []

    def decode(tokens: object) -> str:
        assert isinstance(tokens, list)
        decoded.append(len(tokens))
        return SENTENCEPIECE.decode(tokens)

    decoder = WindowDecoder(decode, frozenset())
    pieces(decoder, SENTENCEPIECE.encode("ab 東京 " * 200).ids)
    assert max(decoded) <= 8
