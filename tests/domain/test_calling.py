"""Calls are found in an answer wherever its text is cut, in each form, and nothing of an answer is swallowed."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.domain.call_forms import FORMS, CallForm
from runtime.domain.calling import Called, CallParser, Found
from runtime.domain.tools import arguments_of

NAMES = frozenset({"weather", "search"})
PARIS, ROME = Called("weather", '{"city": "Paris"}'), Called("search", '{"q": "Rome", "n": [1, {"a": null}]}')


def parsed(form: str, *pieces: str) -> list[Found]:
    """Text that is together in one."""
    parser = CallParser(FORMS[form].parse, NAMES)
    found = [each for piece in pieces for each in parser.push(piece)] + parser.finish()
    joined: list[Found] = []
    for each in found:
        if isinstance(each, str) and joined and isinstance(joined[-1], str):
            joined[-1] += each
        else:
            joined.append(each)
    return joined


def hermes(*calls: Called) -> str:
    return "\n".join(
        f'<tool_call>\n{{"name": "{call.name}", "arguments": {call.arguments}}}\n</tool_call>' for call in calls
    )


ANSWERS: dict[str, tuple[str, str, list[Found]]] = {
    "only text": ("hermes", "Hello <tool> <tool_call", ["Hello <tool> <tool_call"]),
    "a call": ("hermes", hermes(PARIS), [PARIS]),
    "several calls": ("hermes", hermes(PARIS, ROME), [PARIS, ROME]),
    "text around calls": (
        "hermes",
        f"Let me look. \n{hermes(PARIS)}\nAnd: {hermes(ROME)}\n",
        ["Let me look.", PARIS, "\nAnd:", ROME],
    ),
    "no closing marker": ("hermes", hermes(PARIS).removesuffix("</tool_call>"), [PARIS]),
    "a marker within an argument": (
        "hermes",
        hermes(Called("search", '{"q": "</tool_call> \\"}"}')),
        [Called("search", '{"q": "</tool_call> \\"}"}')],
    ),
    "a call that was cut": ("hermes", 'So <tool_call>\n{"name": "wea', ['So <tool_call>\n{"name": "wea']),
    "no JSON": ("hermes", "<tool_call>{name: x}</tool_call>.", ["<tool_call>{name: x}</tool_call>."]),
    "no object": ("hermes", "<tool_call> [1]", ["<tool_call> [1]"]),
    "a marker after a marker": ("hermes", f"<tool_call>{hermes(PARIS)}", ["<tool_call>", PARIS]),
    "a name that is none": ("hermes", hermes(Called("a b", "{}")), [hermes(Called("a b", "{}"))]),
    "arguments that are no object": ("hermes", hermes(Called("f", "[]")), [hermes(Called("f", "[]"))]),
    "not a number": ("hermes", hermes(Called("f", '{"a": NaN}')), [hermes(Called("f", '{"a": NaN}'))]),
    "deep arguments": (
        "hermes",
        hermes(Called("f", '{"a":' + "[" * 5000 + "]" * 5000 + "}")),
        [hermes(Called("f", '{"a":' + "[" * 5000 + "]" * 5000 + "}"))],
    ),
    "no arguments": ("hermes", '<tool_call>{"name": "f"}</tool_call>', [Called("f", "{}")]),
    "arguments as text": (
        "hermes",
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
        [Called("f", '{"a": 1}')],
    ),
    "a line break in a text": ("hermes", hermes(Called("f", '{"a": "x\ny"}')), [Called("f", '{"a": "x\\ny"}')]),
    "half a character": ("hermes", hermes(Called("f", '{"a": "\\ud800"}')), [Called("f", '{"a": "\\ud800"}')]),
    "other letters": ("hermes", hermes(Called("f", '{"a": "Ünï"}')), [Called("f", '{"a": "Ünï"}')]),
    "llama": ("llama", ' {"name": "weather", "parameters": {"city": "Paris"}}', [PARIS]),
    "llama, several": (
        "llama",
        '{"name": "weather", "parameters": {"city": "Paris"}}; {"name": "search", "parameters": {"q": "Rome", "n": '
        '[1, {"a": null}]}}\n',
        [PARIS, ROME],
    ),
    "llama with its tag": ("llama", '<|python_tag|>{"name": "weather", "parameters": {"city": "Paris"}}', [PARIS]),
    "llama with text before its tag": (
        "llama",
        'Well <|python_tag|> {"name": "weather", "parameters": {"city": "Paris"}} Done.',
        ["Well", PARIS, " Done."],
    ),
    "llama answers in JSON": ("llama", ' {"name": "Paris"} is it', [' {"name": "Paris"} is it']),
    "llama runs code": ("llama", "<|python_tag|>print(1)", ["<|python_tag|>print(1)"]),
    "llama only says": ("llama", "\n Hello {}", ["\n Hello {}"]),
    "mistral": ("mistral", '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris"}, "id": "abc"}]', [PARIS]),
    "mistral, several": (
        "mistral",
        'I see[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}}, {"name": "search", "arguments": '
        '{"q": "Rome", "n": [1, {"a": null}]}}]',
        ["I see", PARIS, ROME],
    ),
    "mistral, a list with something else": (
        "mistral",
        '[TOOL_CALLS][{"name": "f"}, 1]',
        ['[TOOL_CALLS][{"name": "f"}, 1]'],
    ),
    "mistral, the newer way": (
        "mistral",
        '[TOOL_CALLS]weather[ARGS]{"city": "Paris"}[TOOL_CALLS]search[CALL_ID]abc123def[ARGS]{"q": "Rome", "n": '
        '[1, {"a": null}]}',
        [PARIS, ROME],
    ),
    "mistral without a name": ("mistral", "[TOOL_CALLS]{} [TOOL", ["[TOOL_CALLS]{} [TOOL"]),
    "mistral, cut": ("mistral", "[TOOL_CALLS]weather[ARGS]{", ["[TOOL_CALLS]weather[ARGS]{"]),
    "nothing": ("mistral", "", []),
    "only space": ("hermes", " \n", [" \n"]),
}


@pytest.mark.parametrize(("form", "text", "found"), ANSWERS.values(), ids=ANSWERS)
def test_the_calls_of_an_answer_are_found_and_the_rest_is_text(form: str, text: str, found: list[Found]) -> None:
    assert parsed(form, text) == found


@pytest.mark.parametrize(("form", "text", "found"), [each for each in ANSWERS.values() if len(each[1]) < 400])
def test_wherever_an_answer_is_cut_it_is_the_same(form: str, text: str, found: list[Found]) -> None:
    assert parsed(form, *text) == found
    for place in range(len(text) + 1):
        assert parsed(form, text[:place], text[place:]) == found


MARKERS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>", "<")
OTHERS = ('{"name": "weather", "arguments": {"a": [1]}}', "weather", " ", "\n", "ü", *'{}[]"\\;:,x')
PIECES = st.sampled_from(MARKERS + OTHERS)


@given(st.sampled_from(sorted(FORMS)), st.lists(PIECES, max_size=12), st.data())
def test_any_answer_is_the_same_however_it_is_cut(form: str, pieces: Sequence[str], data: st.DataObject) -> None:
    text = "".join(pieces)
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    cut = [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]
    found = parsed(form, text)
    assert parsed(form, *cut) == parsed(form, *text) == found
    if not any(isinstance(each, Called) for each in found):
        assert "".join(str(each) for each in found) == text, "what is no call is text, to the last character"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
WRITTEN = {
    "hermes": '<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>',
    "llama": '{{"name": {name}, "parameters": {arguments}}}',
    "mistral": '[TOOL_CALLS][{{"name": {name}, "arguments": {arguments}}}]',
}


@given(st.sampled_from(sorted(FORMS)), st.dictionaries(st.text(max_size=5), VALUES, max_size=4), st.booleans())
def test_any_arguments_come_out_as_they_were_written(form: str, arguments: dict[str, object], ascii_only: bool) -> None:
    text = json.dumps(arguments, ensure_ascii=ascii_only)
    (call,) = parsed(form, WRITTEN[form].format(name='"weather"', arguments=text))
    assert isinstance(call, Called)
    assert arguments_of(call.arguments) == arguments
    call.arguments.encode()


def test_every_form_has_a_name_of_its_own_and_what_begins_it_is_one_of_its_markers() -> None:
    for name, form in FORMS.items():
        assert isinstance(form, CallForm)
        assert form.name == name
        assert form.begins is None or form.begins in form.markers
