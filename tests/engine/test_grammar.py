"""Grammars: what a model without any sense says matches them, and those that cannot be used are refused, not fatal."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.domain.batching import Limits
from runtime.domain.grammar import MAX_GRAMMAR_CHARACTERS, Grammar, GrammarKind, one_of
from runtime.domain.sequence import FinishReason, Sampling
from runtime.domain.steps import SequenceFailed, Submit
from runtime.engine.core import EngineCore
from runtime.engine.grammar import Grammars
from runtime.engine.native import NativeSettings, build_native
from runtime.engine.simulated import EOS, simulated_grammars
from runtime.errors import InvalidArgument, NotSupported
from tests.engine import cores
from tests.scale import scaled

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["cat", "dog"]},
        "legs": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
    },
    "required": ["name", "kind", "legs"],
    "additionalProperties": False,
}
JSON = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))
REGEX = Grammar(GrammarKind.REGEX, r"(\+[0-9]{1,3} )?[0-9]{3}-[0-9]{4} ?é")
CHOICE = one_of(["yes", "no", "not (really)*", "東京"])
SUM = Grammar(GrammarKind.LARK, 'start: term (" + " term){1,3}\nterm: NUMBER | "(" start ")"\nNUMBER: /[0-9]{1,3}/\n')


def is_sum(text: str) -> bool:
    """Every innermost parenthesis is a sum; folded into a number, so is the whole."""
    number = r"[0-9]{1,3}"
    inner = re.compile(rf"{number}( \+ {number}){{1,3}}")
    while (folded := re.sub(rf"\({inner.pattern}\)", "1", text)) != text:
        text = folded
    return inner.fullmatch(text) is not None


def is_animal(text: str) -> bool:
    animal = json.loads(text)
    return (
        animal.keys() == {"name", "kind", "legs"}
        and len(animal["name"]) <= 12
        and animal["kind"] in ("cat", "dog")
        and len(animal["legs"]) <= 3
        and all(type(leg) is int and 0 <= leg <= 99 for leg in animal["legs"])
    )


MATCHES: dict[str, tuple[Grammar, Callable[[str], bool]]] = {
    "json_schema": (JSON, is_animal),
    "regex": (REGEX, lambda text: re.fullmatch(REGEX.text, text) is not None),
    "choice": (CHOICE, lambda text: text in CHOICE.choices),
    "lark": (SUM, is_sum),
}


@pytest.fixture(scope="module")
def native(checkpoint: Callable[[str], Path]) -> EngineCore:
    settings = NativeSettings("tiny", checkpoint("llama"), "float32", page_tokens=32, threads=1)
    return build_native(settings, Limits(96, max_running=32), lambda _: 400)


@pytest.mark.parametrize("engine", ["native", "simulated"])
@pytest.mark.parametrize("kind", MATCHES)
def test_every_answer_that_is_not_cut_matches(kind: str, engine: str, native: EngineCore) -> None:
    grammar, matches = MATCHES[kind]
    core = native if engine == "native" else cores.new_core(pages=800, max_tokens=400, max_running=8)
    decoder = native._decoder if engine == "native" else core._decoder
    asked = [
        cores.sequence(
            f"{kind}{seed}", (5, 6, 7), Sampling(200, temperature=1.5 * (seed % 3), seed=seed, grammar=grammar)
        )
        for seed in range(scaled(9, 40))
    ]
    ran = cores.generate(core, *asked)
    ended = 0
    for each in asked:
        given = ran.generated(each.id)
        text = "".join(event.text for event in given)
        push = decoder()
        assert "".join([push.push(token) for token in ran.tokens(each.id)]) + push.flush() == text
        if given[-1].finish is FinishReason.STOP:
            ended += 1
            assert matches(text), text
    assert ended >= len(asked) // 2


def test_an_answer_ends_where_nothing_can_follow_without_an_end_of_turn_token() -> None:
    asked = cores.sequence("a", (1,), Sampling(50, grammar=one_of(["yes"]), min_tokens=40, ignore_eos=True))
    ran = cores.generate(cores.new_core(), asked)
    assert ran.tokens("a") == list(b"yes")
    assert ran.generated("a")[-1].finish is FinishReason.STOP


def test_an_end_of_turn_that_may_not_end_is_not_chosen() -> None:
    """Everywhere the grammar would let the answer end; only its length does."""
    asked = Sampling(40, grammar=Grammar(GrammarKind.REGEX, "a*"), ignore_eos=True)
    ran = cores.generate(cores.new_core(), cores.sequence("a", (1,), asked))
    assert ran.tokens("a") == list(b"a" * 40)
    short = cores.generate(cores.new_core(), cores.sequence("a", (1,), Sampling(40, grammar=asked.grammar, seed=3)))
    assert short.tokens("a")[-1] == EOS


def test_bans_give_way_to_the_grammar() -> None:
    asked = Sampling(40, grammar=one_of(["yes"]), banned_tokens=((ord("y"),),))
    assert cores.generate(cores.new_core(), cores.sequence("a", (1,), asked)).tokens("a") == list(b"yes")


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        (Grammar(GrammarKind.REGEX, "(("), "unclosed group"),
        (Grammar(GrammarKind.REGEX, "(" * 9000), "regex"),
        (Grammar(GrammarKind.JSON_SCHEMA, "{"), "property name"),
        (Grammar(GrammarKind.JSON_SCHEMA, '{}}, {"json_schema": {}'), "Extra data"),
        (Grammar(GrammarKind.JSON_SCHEMA, "5"), "cannot be used"),
        (Grammar(GrammarKind.JSON_SCHEMA, '{"type": "cat"}'), "cat"),
        (Grammar(GrammarKind.JSON_SCHEMA, '{"items":' * 1200 + "{}" + "}" * 1200), "recursion"),
        (Grammar(GrammarKind.JSON_SCHEMA, '{"items":' * 200 + "{}" + "}" * 200), "recursion limit"),
        (Grammar(GrammarKind.JSON_SCHEMA, '{"$ref": "http://localhost/"}'), "does not fetch"),
        (Grammar(GrammarKind.LARK, "start: missing"), "unknown name"),
        (Grammar(GrammarKind.LARK, "start: " + "(" * 9000), "too deeply nested"),
        (Grammar(GrammarKind.JSON_SCHEMA, '{"$ref": "#"}'), "cannot be used"),
    ],
    ids=str,
)
def test_a_grammar_that_cannot_be_used_fails_its_sequence_alone(grammar: Grammar, said: str) -> None:
    core = cores.new_core()
    core.apply(Submit(cores.sequence("plain", (1, 2)), cores.LOCAL))
    core.apply(Submit(cores.sequence("a", (1,), Sampling(9, grammar=grammar)), cores.LOCAL))
    ran = cores.run(core)
    (failed,) = (event for event in ran.events if isinstance(event, SequenceFailed))
    assert failed.sequence == "a"
    assert isinstance(failed.error, InvalidArgument)
    assert failed.error.field == "grammar"
    assert said in failed.error.message
    assert len(failed.error.message) < 400
    assert len(ran.tokens("plain")) == cores.GREEDY.max_tokens


def test_rules_as_deep_as_the_longest_text_may_have_do_not_break_the_process() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = [f"{a}{b}{c}" for a in letters for b in letters for c in letters]
    text, depth = f"start: {names[0]}\n", 0
    while len(text) + 20 < MAX_GRAMMAR_CHARACTERS:
        text += f"{names[depth]}:{names[depth + 1]}\n"
        depth += 1
    assert depth > 1700
    asked = Sampling(9, grammar=Grammar(GrammarKind.LARK, f'{text}{names[depth]}:"x"\n'))
    assert cores.generate(cores.new_core(), cores.sequence("a", (1,), asked)).tokens("a") == list(b"x")


def test_a_grammar_is_compiled_once_and_answers_do_not_share_where_they_are() -> None:
    grammars = simulated_grammars()
    assert grammars.begin(REGEX) is grammars.begin(REGEX)
    one, other = grammars.start(CHOICE), grammars.start(CHOICE)
    before = other.mask()
    one.push(ord("y"))
    assert other.mask() == before != one.mask()
    grammars.close()


def test_the_least_used_grammars_are_forgotten() -> None:
    grammars = simulated_grammars()
    first = grammars.begin(one_of(["0"]))
    for number in range(1, 130):
        grammars.begin(one_of([str(number)]))
    assert len(grammars._known) == 128
    assert grammars.begin(one_of(["0"])) is not first
    grammars.close()


def test_an_engine_without_grammars_says_so() -> None:
    core = cores.new_core()
    core._grammars = None
    ran = cores.generate(core, cores.sequence("a", (1,), Sampling(9, grammar=REGEX)))
    assert isinstance(ran.error(), NotSupported)
    assert ran.error().field == "grammar"


def test_forced_tokens_outside_the_grammar_are_refused() -> None:
    ran = cores.generate(cores.new_core(), cores.sequence("a", (1,), Sampling(9, grammar=CHOICE), forced=b"maybe"))
    assert ran.error().field == "grammar"


def test_a_vocabulary_is_asked_for_once() -> None:
    asked: list[int] = []
    made = simulated_grammars()

    def vocabulary() -> object:
        asked.append(1)
        return made._vocabulary()

    grammars = Grammars(vocabulary)  # type: ignore[arg-type]
    for each in (REGEX, CHOICE, JSON):
        grammars.start(each)
    assert asked == [1]
    grammars.close()
