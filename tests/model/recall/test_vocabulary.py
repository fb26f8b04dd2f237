"""The shipped tokenizer: exact round trips, single digits and an append-only chat template."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from runtime.model.recall.shipped import SHIPPED_MODEL
from runtime.model.recall.vocabulary import CHAT_TEMPLATE, SPECIAL_TOKENS, learn_tokenizer

_TOKENIZER = AutoTokenizer.from_pretrained(SHIPPED_MODEL)
_CONTENTS = st.text(max_size=40).filter(lambda text: "<|" not in text)
_CHATS = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), _CONTENTS), min_size=1, max_size=6)


def _rendered(messages: Sequence[tuple[str, str]], *, ask: bool = False) -> str:
    chat = [{"role": role, "content": content} for role, content in messages]
    return str(_TOKENIZER.apply_chat_template(chat, tokenize=False, add_generation_prompt=ask))


@settings(deadline=None)
@given(st.text().filter(lambda text: not any(token in text for token in SPECIAL_TOKENS)))
def test_any_text_encodes_and_decodes_to_itself(text: str) -> None:
    assert _TOKENIZER.decode(_TOKENIZER.encode(text)) == text


@pytest.mark.parametrize(
    "text", ["naïve 猫 🐈‍⬛ \x00\r\n\t", "  two  spaces ", "e\u0301 \ufeff \U0010ffff", "1234567890"]
)
def test_odd_texts_decode_to_themselves(text: str) -> None:
    assert _TOKENIZER.decode(_TOKENIZER.encode(text)) == text


def test_each_digit_is_a_token() -> None:
    assert [_TOKENIZER.decode([token]) for token in _TOKENIZER.encode("is 4417.")][-5:] == ["4", "4", "1", "7", "."]


def test_a_first_message_may_be_the_systems() -> None:
    assert (
        _rendered([("system", "Be brief."), ("user", "Hi.")], ask=True)
        == "<|begin|><|system|>Be brief.<|end|><|user|>Hi.<|end|><|assistant|>"
    )


def test_an_unknown_role_is_refused_by_name() -> None:
    with pytest.raises(TemplateError, match="not tool"):
        _rendered([("tool", "4417")])


@settings(deadline=None)
@given(_CHATS)
def test_what_was_rendered_stays_the_beginning_of_every_later_rendering(chat: list[tuple[str, str]]) -> None:
    whole = _rendered(chat)
    for end in range(1, len(chat)):
        answered = chat[end][0] == "assistant"
        assert whole.startswith(_rendered(chat[:end], ask=answered))


@settings(deadline=None)
@given(_CHATS)
def test_the_tokens_of_a_rendering_stay_the_beginning_of_every_later_ones_tokens(chat: list[tuple[str, str]]) -> None:
    whole = _TOKENIZER.encode(_rendered(chat))
    for end in range(1, len(chat)):
        part = _TOKENIZER.encode(_rendered(chat[:end], ask=chat[end][0] == "assistant"))
        assert whole[: len(part)] == part


def test_the_shipped_tokenizer_is_what_the_code_and_the_seed_make() -> None:
    learned = learn_tokenizer(seed=7, context_tokens=4096)
    assert isinstance(_TOKENIZER, PreTrainedTokenizerFast)
    assert learned.get_vocab() == _TOKENIZER.get_vocab()
    assert _TOKENIZER.chat_template == CHAT_TEMPLATE
