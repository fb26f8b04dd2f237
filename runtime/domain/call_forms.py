"""The forms in which families of models call tools: how each is read, and which grammar makes a model keep to it.

hermes    <tool_call>
          {"name": "f", "arguments": {...}}
          </tool_call>                                     Hermes, Qwen 2.5 and 3, and many after them
llama     {"name": "f", "parameters": {...}}               Llama 3.1 and later; <|python_tag|> may come first
mistral   [TOOL_CALLS][{"name": "f", "arguments": {...}}]  Mistral; the newer ones [TOOL_CALLS]f[ARGS]{...}
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from runtime.domain.calling import Answer, Called, Steps, call_in, calls_in, quoted
from runtime.domain.tools import NAME, Toolbox, ToolChoice, arguments_of, written

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_TAG = "<|python_tag|>"
_CALLS, _ID, _ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
Spell = Callable[[str], str]
"""A marker as a grammar in Lark's notation has it: a literal, or the token that it is."""


@dataclass(frozen=True, slots=True)
class CallForm:
    """`markers` are what may be a token without text of its own, the first being what begins a call, if anything always
    does. `rules` gives the rules `calls` and `text` of a grammar, the latter for what is said beside calls. An id is
    `id_prefix` and `id_digits` hexadecimal digits; some templates look at that."""

    name: str
    markers: tuple[str, ...]
    begins: str | None
    parse: Callable[[Answer], Steps[None]]
    rules: Callable[[Toolbox, Spell], list[str]]
    id_prefix: str = "call_"
    id_digits: int = 24


def _hermes(answer: Answer) -> Steps[None]:
    while (yield from answer.text_until(_OPEN)):
        space, char = yield from answer.next_solid()
        if char != "{":
            answer.write(_OPEN + space)
            answer.give_back(char)
            continue
        text, whole = yield from answer.json(char)
        call = call_in(text) if whole else None
        if call is None:
            answer.write(_OPEN + space + text)
            continue
        answer.call(call)
        space, char = yield from answer.next_solid()
        answer.give_back(char)
        if not (yield from answer.reads(_CLOSE)):
            answer.write(space)


def _llama(answer: Answer) -> Steps[None]:
    space, char = yield from answer.next_solid()
    answer.give_back(char)
    if char == "{":
        yield from _llama_calls(answer, space)
    else:
        answer.write(space)
    while (yield from answer.text_until(_TAG)):
        yield from _llama_calls(answer, _TAG)


def _llama_calls(answer: Answer, before: str) -> Steps[None]:
    """Objects one after the other, with semicolons or nothing between them. `before` is text if they are no calls."""
    while True:
        space, char = yield from answer.next_solid()
        if char != "{":
            answer.write(before + space)
            answer.give_back(char)
            return
        text, whole = yield from answer.json(char)
        call = call_in(text) if whole else None
        # Nothing but its name tells a call from an answer in JSON.
        if call is None or call.name not in answer.names:
            answer.write(before + space + text)
            return
        answer.call(call)
        before, char = yield from answer.next_solid()
        if char == ";":
            before += char
        else:
            answer.give_back(char)


def _mistral(answer: Answer) -> Steps[None]:
    while (yield from answer.text_until(_CALLS)):
        space, char = yield from answer.next_solid()
        if char and char in "[{":
            text, whole = yield from answer.json(char)
            calls = calls_in(text) if whole else None
        else:
            answer.give_back(char)
            text, calls = yield from _named(answer)
        if calls is None:
            answer.write(_CALLS + space + text)
        else:
            answer.call(*calls)


def _named(answer: Answer) -> Steps[tuple[str, list[Called] | None]]:
    """A name, perhaps an id, and arguments."""
    name = ""
    while NAME.fullmatch(char := (yield from answer.next())):
        name += char
    answer.give_back(char)
    text = name
    if (yield from answer.reads(_ID)):
        text += _ID
        while (char := (yield from answer.next())).isalnum():
            text += char
        answer.give_back(char)
    if (yield from answer.reads(_ARGUMENTS)):
        text += _ARGUMENTS
    space, char = yield from answer.next_solid()
    text += space
    if char != "{" or not NAME.fullmatch(name):
        answer.give_back(char)
        return text, None
    said, whole = yield from answer.json(char)
    arguments = arguments_of(said, strict=False) if whole else None
    return text + said, None if arguments is None else [Called(name, written(arguments))]


def _objects(toolbox: Toolbox, arguments: str) -> list[str]:
    """The rule `object`: any of the calls as a JSON object, with its `arguments` under that name."""
    rules = []
    for number, tool in enumerate(toolbox.called):
        begins = quoted(f'{{"name": {json.dumps(tool.name)}, "{arguments}": ')
        rules += [f'object_{number}: {begins} arguments_{number} "}}"']
        rules += [f"arguments_{number}: %json {json.dumps(tool.schema)}"]
    return [f"object: {' | '.join(f'object_{number}' for number in range(len(toolbox.called)))}", *rules]


def _hermes_rules(toolbox: Toolbox, spell: Spell) -> list[str]:
    more = f' ("\\n" {spell(_OPEN)} "\\n" object "\\n" {spell(_CLOSE)})*' if toolbox.parallel else ""
    calls = f'calls: {spell(_OPEN)} "\\n" object "\\n" {spell(_CLOSE)}{more}'
    return [calls, *_objects(toolbox, "arguments"), *_text(_OPEN, spell)]


def _llama_rules(toolbox: Toolbox, spell: Spell) -> list[str]:
    more = ' ("; " object)*' if toolbox.parallel else ""
    return [f"calls: object{more}", *_objects(toolbox, "parameters"), "text: /[^\\s{](?s:.)*/ | /\\s*/"]


def _mistral_rules(toolbox: Toolbox, spell: Spell) -> list[str]:
    more = ' (", " object)*' if toolbox.parallel else ""
    return [f'calls: {spell(_CALLS)} "[" object{more} "]"', *_objects(toolbox, "arguments"), *_text(_CALLS, spell)]


def _text(marker: str, spell: Spell) -> list[str]:
    """What a marker is not in; one that is a token is in no text anyway."""
    if spell(marker) != quoted(marker):
        return ["text: /(?s:.*)/"]
    return ["text: TEXT", f"TEXT: /(?s:.*)/ & ~/(?s:.*){marker.translate(_ESCAPED)}(?s:.*)/"]


_ESCAPED = str.maketrans({char: f"\\{char}" for char in "[]|/"})
FORMS: Mapping[str, CallForm] = {
    form.name: form
    for form in (
        CallForm("mistral", (_CALLS, _ID, _ARGUMENTS), _CALLS, _mistral, _mistral_rules, "", 9),
        CallForm("hermes", (_OPEN, _CLOSE), _OPEN, _hermes, _hermes_rules),
        CallForm("llama", (_TAG,), None, _llama, _llama_rules),
    )
}
"""In the order in which a template is asked: what one writes without any marker comes last."""


def calls_grammar(form: CallForm, toolbox: Toolbox, spell: Spell) -> str | None:
    """What an answer must match for these tools to be called as asked; None where it may be anything. A strict one says
    something or calls, and not both: where text ends and a marker begins a grammar cannot tell."""
    if toolbox.choice is ToolChoice.REQUIRED or toolbox.function is not None:
        return "\n".join(["start: calls", *form.rules(toolbox, spell)])
    if toolbox.callable and toolbox.strict:
        return "\n".join(["start: text | calls", *form.rules(toolbox, spell)])
    return None
