"""What is new in a conversation is rendered alone, on templates that behave as those of model families do."""

import shutil
from pathlib import Path

import pytest

from runtime.errors import InvalidArgument
from runtime.model.tokenizer import Tokenizer
from tests.model.templates import (
    DATED,
    MERGED,
    NO_SYSTEM,
    REFUSED,
    SERVED,
    SYSTEM_AT_THE_LAST_QUESTION,
    THINKING_PROMPT,
)

Message = dict[str, object]
FAITHFUL = ("append-only", "a date in the system block", "no system role", "merged roles")
"""Those whose longer conversations are longer texts, where an answer has nothing that is stripped."""


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


@pytest.fixture
def tokenizer(llama: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Tokenizer:
    path = Path(shutil.copytree(llama, tmp_path / "model"))
    (path / "chat_template.jinja").write_text(request.param)
    return Tokenizer(path)


def text(tokenizer: Tokenizer, tokens: list[int]) -> str:
    """Special tokens too."""
    return str(tokenizer._backend.decode(tokens, skip_special_tokens=False))


@pytest.mark.parametrize("tokenizer", SERVED.values(), ids=SERVED, indirect=True)
def test_what_is_new_is_what_the_template_writes_after_the_last_answer(tokenizer: Tokenizer) -> None:
    assert tokenizer.no_deltas() is None
    delta = text(tokenizer, tokenizer.render_delta([], [user("And now?")]))
    past = [user("Who are you?"), assistant("Baton."), user("Why?"), assistant("So.")]
    whole = text(tokenizer, tokenizer.render_chat([*past, user("And now?")]))
    assert whole.endswith(delta)
    assert delta.count("And now?") == 1
    assert "So." not in delta
    assert delta.index("And now?") > 0, "what closes the answer comes first"


@pytest.mark.parametrize("name", FAITHFUL)
def test_committed_tokens_and_what_is_new_are_the_whole_rendering_where_the_template_only_appends(
    name: str, llama: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(llama, tmp_path / "model"))
    (path / "chat_template.jinja").write_text(SERVED[name])
    tokenizer = Tokenizer(path)
    committed = tokenizer.render_chat([user("Who are you?")]) + tokenizer.encode_within("Baton.")
    delta = tokenizer.render_delta([], [user("And now?")])
    whole = tokenizer.render_chat([user("Who are you?"), assistant("Baton."), user("And now?")])
    assert text(tokenizer, committed + delta) == text(tokenizer, whole)


@pytest.mark.parametrize("tokenizer", [SYSTEM_AT_THE_LAST_QUESTION], indirect=True)
def test_what_the_system_says_is_told_again_where_the_template_tells_it_last(tokenizer: Tokenizer) -> None:
    delta = text(tokenizer, tokenizer.render_delta([{"role": "system", "content": "Be brief."}], [user("And now?")]))
    assert delta == "</s>[TOOLS]Be brief.[/TOOLS][INST] And now?[/INST]"


@pytest.mark.parametrize("tokenizer", [DATED], indirect=True)
def test_a_date_is_not_told_again(tokenizer: Tokenizer) -> None:
    delta = text(tokenizer, tokenizer.render_delta([{"role": "system", "content": "Be brief."}], [user("And now?")]))
    assert delta == "<|eot|><|head|>user<|neck|>\n\nAnd now?<|eot|><|head|>assistant<|neck|>\n\n"


@pytest.mark.parametrize("tokenizer", [THINKING_PROMPT], indirect=True)
def test_the_assistant_begins_to_think_again(tokenizer: Tokenizer) -> None:
    delta = text(tokenizer, tokenizer.render_delta([], [user("And now?")]))
    assert delta == "<|end|><|User|>And now?<|Assistant|><think>\n"


@pytest.mark.parametrize("tokenizer", [MERGED], indirect=True)
def test_several_messages_are_rendered_together(tokenizer: Tokenizer) -> None:
    delta = text(tokenizer, tokenizer.render_delta([], [user("One."), user("Two.")]))
    assert delta == "<|end|><|user|>One.\n\nTwo.<|end|><|assistant|>"


@pytest.mark.parametrize("tokenizer", [NO_SYSTEM], indirect=True)
def test_what_the_template_refuses_is_refused_by_the_name_of_the_field(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidArgument, match="System role not supported") as refused:
        tokenizer.render_delta([{"role": "system", "content": "Be brief."}], [user("And now?")])
    assert refused.value.field == "messages"


@pytest.mark.parametrize("tokenizer", [MERGED], indirect=True)
def test_a_message_that_holds_the_marker_is_rendered_like_any_other(tokenizer: Tokenizer) -> None:
    said = "Qx7MarkedAnswer and Qx7MarkedAnswerx"
    assert text(tokenizer, tokenizer.render_delta([], [user(said)])) == f"<|end|><|user|>{said}<|end|><|assistant|>"


@pytest.mark.parametrize(("tokenizer", "why"), REFUSED.values(), ids=REFUSED, indirect=["tokenizer"])
def test_a_template_without_such_a_rendering_says_why(tokenizer: Tokenizer, why: str) -> None:
    told = tokenizer.no_deltas()
    assert told is not None
    assert why in told
