"""The tokenizer: prompts and chats to ids, errors that blame the right field, no torch for those who only need it."""

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from runtime.errors import InvalidArgument, ModelError
from runtime.model.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(llama: Path) -> Tokenizer:
    return Tokenizer(llama)


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "copy"))


@pytest.mark.parametrize("text", ["", "hello there", "Zürich 東京 🎉\n", "<|im_end|>"])
def test_text_survives_encoding_and_decoding(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    assert tokenizer.decode(ids) == text.replace("<|im_end|>", "")


def test_a_text_within_an_answer_has_no_special_tokens_around_it(tokenizer: Tokenizer, copy: Path) -> None:
    file = copy / "tokenizer.json"
    content = json.loads(file.read_text())
    (start,) = tokenizer.encode("<|im_start|>")
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [start], "tokens": ["<|im_start|>"]}},
    }
    file.write_text(json.dumps(content))
    wanting = Tokenizer(copy)
    assert wanting.encode("hi") == [start, *tokenizer.encode("hi")]
    assert wanting.encode_within("hi") == tokenizer.encode("hi")


def test_a_chat_is_rendered_through_the_template(tokenizer: Tokenizer) -> None:
    ids = tokenizer.render_chat([{"role": "user", "content": "hi"}])
    start, end = tokenizer.encode("<|im_start|>"), tokenizer.encode("<|im_end|>")
    expected = [*start, *tokenizer.encode("user\nhi"), *end, *tokenizer.encode("\n"), *start]
    assert ids == expected + tokenizer.encode("assistant\n")


def test_a_chat_without_generation_prompt_ends_with_its_last_message(tokenizer: Tokenizer) -> None:
    messages: list[dict[str, object]] = [{"role": "user", "content": "hi"}]
    shorter = tokenizer.render_chat(messages, add_generation_prompt=False)
    longer = tokenizer.render_chat(messages)
    assert longer[: len(shorter)] == shorter
    assert tokenizer.decode(longer[len(shorter) :]) == "assistant\n"


def test_a_role_that_the_template_refuses_is_blamed_on_the_messages(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidArgument, match="the chat template refused them: unknown role wizard") as caught:
        tokenizer.render_chat([{"role": "wizard", "content": "hi"}])
    assert caught.value.field == "messages"


def test_messages_that_break_the_template_are_blamed_too(copy: Path) -> None:
    (copy / "chat_template.jinja").write_text("{{ messages[0].content + 1 }}")
    with pytest.raises(InvalidArgument, match="the chat template refused them") as caught:
        Tokenizer(copy).render_chat([{"role": "user", "content": "hi"}])
    assert caught.value.field == "messages"


def test_no_messages_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidArgument, match="must not be empty"):
        tokenizer.render_chat([])


def test_a_model_without_a_template_says_so(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    tokenizer = Tokenizer(copy)
    assert not tokenizer.has_chat_template
    with pytest.raises(InvalidArgument, match="has no chat template") as caught:
        tokenizer.render_chat([{"role": "user", "content": "hi"}])
    assert caught.value.field == "messages"


def test_a_template_that_does_not_parse_is_the_checkpoints_fault(copy: Path) -> None:
    (copy / "chat_template.jinja").write_text("{% for message in messages %}")
    with pytest.raises(ModelError, match="the chat template has a syntax error in line 1"):
        Tokenizer(copy)


def test_a_lone_surrogate_is_refused_naming_the_field(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidArgument, match="prompt is not valid Unicode") as caught:
        tokenizer.encode("a\ud800b")
    assert caught.value.field == "prompt"
    with pytest.raises(InvalidArgument) as caught:
        tokenizer.render_chat([{"role": "user", "content": "\udfff"}])
    assert caught.value.field == "messages"


def test_a_length_baked_into_the_file_shortens_no_prompt(copy: Path) -> None:
    content = json.loads((copy / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    (copy / "tokenizer.json").write_text(json.dumps(content))
    assert Tokenizer(copy).decode(Tokenizer(copy).encode("a prompt of more than three tokens")).endswith("tokens")


def test_the_tokens_that_end_a_turn_come_from_all_who_declare_them(copy: Path) -> None:
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    tokenizer = Tokenizer(copy)
    assert tokenizer.eos_ids == {7, 8, *tokenizer.encode("<|im_end|>")}


def test_a_missing_tokenizer_is_named(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"there is no tokenizer\.json"):
        Tokenizer(copy)


@pytest.mark.parametrize("content", ["{", "{}", '{"model": {"type": "Magic"}}'])
def test_a_damaged_tokenizer_is_named(copy: Path, content: str) -> None:
    (copy / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json: cannot be read"):
        Tokenizer(copy)


def test_a_gateway_can_use_it_without_torch(llama: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from runtime.model.tokenizer import Tokenizer;"
        f"tokenizer = Tokenizer(Path({str(llama)!r}));"
        "ids = tokenizer.render_chat([{'role': 'user', 'content': 'hi'}]); tokenizer.decoder().push(ids[0]);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_long_text_is_tokenized_without_stopping_the_other_threads(tokenizer: Tokenizer) -> None:
    text = "the quick brown fox jumps over the lazy dog; " * 4_000
    thread = threading.Thread(target=tokenizer.encode, args=(text,))
    longest, last = 0.0, time.perf_counter()
    begun = last
    thread.start()
    while thread.is_alive():
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    assert longest < (time.perf_counter() - begun) / 2
