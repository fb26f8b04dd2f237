"""In which form a model calls tools is found out by its chat template, and what tools brought is rendered alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers

from runtime.domain.call_forms import FORMS, calls_grammar
from runtime.domain.calling import quoted
from runtime.domain.grammar import Grammar, GrammarKind
from runtime.domain.tools import Tool, Toolbox, ToolCall, ToolChoice
from runtime.engine.grammar import Grammars
from runtime.model.tokenizer import Tokenizer
from runtime.roles.calls import CallReader
from tests.model.templates import APPEND_ONLY
from tests.model.tool_templates import FAMILIES, HERMES, HIDDEN, LLAMA, MISTRAL, STRANGE

Made = Callable[..., Tokenizer]
WEATHER = Tool(
    "weather",
    "Tells the weather.",
    '{"type": "object", "properties": {"city": {"$ref": "#/$defs/city"}}, "required": ["city"], "$defs": {"city": '
    '{"type": "string", "enum": ["Paris", "Rome"]}}}',
)
CLOCK = Tool("clock", "Tells the time.")
TOOLS = [tool.for_template for tool in (WEATHER, CLOCK)]
IDENT = "abc123def"
CALL = ToolCall(IDENT, "weather", '{"city": "Paris"}')
USER: dict[str, object] = {"role": "user", "content": "How is it in Paris?"}
CALLED: dict[str, object] = {"role": "assistant", "content": "", "tool_calls": [CALL.for_template]}
RESULT: dict[str, object] = {"role": "tool", "content": "Sunny.", "tool_call_id": IDENT, "name": "weather"}


@pytest.fixture
def made(llama: Path, tmp_path: Path) -> Made:
    def make(template: str, *special: str, declared: str = "auto") -> Tokenizer:
        path = Path(shutil.copytree(llama, tmp_path / "model"))
        (path / "chat_template.jinja").write_text(template)
        backend = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
        backend.add_special_tokens(list(special))
        backend.save(str(path / "tokenizer.json"))
        return Tokenizer(path, declared)

    return make


def text(tokenizer: Tokenizer, tokens: list[int]) -> str:
    """Special tokens too."""
    return str(tokenizer._backend.decode(tokens, skip_special_tokens=False))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_form_of_calls_is_the_one_that_the_template_writes(name: str, made: Made) -> None:
    tokenizer = made(FAMILIES[name], *HIDDEN[name])
    assert (tokenizer.no_tools(), tokenizer.no_deltas(), tokenizer.no_results()) == (None, None, None)
    form = tokenizer.call_form
    assert form is not None
    assert form.name == name
    whole = text(tokenizer, tokenizer.render_chat([USER, CALLED, RESULT], TOOLS))
    assert "Tells the time." in whole
    assert whole.count("Sunny.") == 1


def _without_results() -> str:
    return HERMES.replace("{{ m.content }}\n</tool_response>", "</tool_response>")


def test_a_model_with_no_known_form_says_why_unless_somebody_knows_better(
    made: Made, llama: Path, tmp_path: Path
) -> None:
    plain = made(APPEND_ONLY)
    assert plain.call_form is None
    assert plain.no_tools() == "its chat template does not render tools"
    for number, (template, declared, why) in enumerate(
        (
            (STRANGE, "auto", "its chat template writes calls in no form that is known"),
            (STRANGE, "hermes", None),
            (HERMES, "none", "it is declared to call none"),
            (APPEND_ONLY, "hermes", "its chat template does not render tools"),
            (
                HERMES.replace("{{ m.content }}\n</tool_response>", "</tool_response>"),
                "auto",
                "calls and their results",
            ),
        )
    ):
        path = Path(shutil.copytree(llama, tmp_path / str(number)))
        (path / "chat_template.jinja").write_text(template)
        tokenizer = Tokenizer(path, declared)
        assert (tokenizer.call_form is None) == (why is not None)
        assert (tokenizer.no_tools() or "").endswith(why or "")


DELTAS = {
    "hermes": (
        HERMES,
        "<|im_end|>\n<|im_start|>user<tool_response>\nSunny.\n</tool_response><|im_end|>\n<|im_start|>",
    ),
    "llama": (LLAMA, '<|eot|><|head|>ipython<|neck|>\n\n"Sunny."<|eot|><|head|>assistant<|neck|>\n\n'),
    "mistral": (MISTRAL, '</s>[TOOL_RESULTS]{"content": "Sunny.", "call_id": "abc123def"}[/TOOL_RESULTS]'),
}


@pytest.mark.parametrize(("template", "delta"), DELTAS.values(), ids=DELTAS)
def test_what_a_tool_brought_is_what_follows_the_answer(template: str, delta: str, made: Made) -> None:
    tokenizer = made(template)
    told = text(tokenizer, tokenizer.render_delta([], [RESULT], TOOLS))
    assert told.startswith(delta)
    assert "Tells the time." not in told


@pytest.mark.parametrize(("name", "again"), [("hermes", False), ("llama", False), ("mistral", True)])
def test_tools_are_told_again_only_where_the_template_tells_them_at_the_last_question(
    name: str, again: bool, made: Made
) -> None:
    tokenizer = made(FAMILIES[name])
    told = text(tokenizer, tokenizer.render_delta([], [USER], TOOLS))
    assert ("Tells the time." in told) == again


def test_results_that_depend_on_earlier_turns_cannot_be_told_alone(made: Made) -> None:
    numbered = HERMES.replace("<tool_response>\n", "<tool_response>\n{{ messages | length }} ")
    tokenizer = made(numbered)
    assert tokenizer.no_deltas() is None
    assert tokenizer.no_results() == "what its chat template writes of a tool's result depends on the turns before it"


ANSWERS = {
    "hermes": 'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>',
    "llama": '<|python_tag|>{"name": "weather", "parameters": {"city": "Paris"}}',
    "mistral": 'Let me see.[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris"}}]',
}


@pytest.mark.parametrize("name", FAMILIES)
def test_calls_are_read_again_from_tokens_and_the_text_that_workers_give(name: str, made: Made) -> None:
    """Kill and replay: a reader that begins anew with what is persisted finds the same, wherever it was cut."""
    tokenizer = made(FAMILIES[name], *HIDDEN[name])
    tokens = tokenizer.encode_within(ANSWERS[name])
    decoder = tokenizer.decoder()
    pieces = [decoder.push(token) for token in tokens]
    assert not any(marker in "".join(pieces) for marker in HIDDEN[name]), "such a marker has no text"
    toolbox = Toolbox((WEATHER, CLOCK))

    def read(*events: tuple[list[int], str]) -> tuple[str, list[ToolCall]]:
        reader = CallReader(tokenizer, toolbox, "turn-1")
        found = [each for event in events for each in reader.push(*event)] + reader.finish()
        return "".join(each for each in found if isinstance(each, str)), reader.made

    said, calls = read((tokens, "".join(pieces)))
    assert said == ANSWERS[name].partition(HIDDEN[name][0] if HIDDEN[name] else "\n<tool_call>")[0]
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [("weather", {"city": "Paris"})]
    assert len(calls[0].id) == (9 if name == "mistral" else 29)
    for cut in range(len(tokens) + 1):
        assert (
            read(*(([token], piece) for token, piece in zip(tokens[:cut], pieces[:cut], strict=True)))
            != (
                said,
                calls,
            )
            or cut > 0
        )
        rest = (tokens[cut:], "".join(pieces[cut:]))
        assert read((tokens[:cut], "".join(pieces[:cut])), rest) == (said, calls)
        # Text may be held back and come after its tokens.
        assert read((tokens[:cut], ""), (tokens[cut:], ""), ([], "".join(pieces))) == (said, calls)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("hidden", [True, False])
def test_a_grammar_makes_the_answer_call_as_the_form_wants_it(name: str, hidden: bool, made: Made) -> None:
    tokenizer = made(FAMILIES[name], *(HIDDEN[name] if hidden else ()))
    from llguidance import LLTokenizer

    grammars = Grammars(lambda: LLTokenizer(tokenizer.to_json(), tokenizer.vocab_size, sorted(tokenizer.eos_ids)))
    form = FORMS[name]

    def spell(marker: str) -> str:
        token = tokenizer.special(marker)
        return quoted(marker) if token is None else f"<[{token}]>"

    def matches(toolbox: Toolbox, answer: str) -> bool:
        written = calls_grammar(form, toolbox, spell)
        assert written is not None
        constraint = grammars.start(Grammar(GrammarKind.LARK, written))
        for token in [*tokenizer.encode_within(answer), min(tokenizer.eos_ids)]:
            mask = constraint.mask()
            if mask is None or not mask[token >> 3] >> (token & 7) & 1:
                return False
            constraint.push(token)
        return constraint.error is None

    required = Toolbox((WEATHER, CLOCK), ToolChoice.REQUIRED)
    call = ANSWERS[name].removeprefix("Let me see.").removeprefix("\n").removeprefix("<|python_tag|>")
    assert matches(required, call)
    assert not matches(required, call.replace("Paris", "Oslo")), "the arguments match their schema"
    assert not matches(required, "I will not.")
    assert not matches(Toolbox((WEATHER, CLOCK), ToolChoice.REQUIRED, "clock"), call)
    both = call + "\n" + call if name == "hermes" else call + "; " + call
    if name == "mistral":
        both = call[:-1] + ", " + call.removeprefix("[TOOL_CALLS][")
    assert matches(required, both)
    assert not matches(Toolbox((WEATHER, CLOCK), ToolChoice.REQUIRED, parallel=False), both)
    strict = Toolbox((WEATHER, CLOCK), strict=True)
    assert matches(strict, "I will not, [but] {maybe}.")
    assert matches(strict, call)
    assert not matches(strict, call.replace("Paris", "Oslo"))
    grammars.close()
