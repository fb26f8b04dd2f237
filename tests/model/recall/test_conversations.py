"""The synthetic conversations: deterministic, true to what was stated, and honest about what was held out."""

import random
import re

from runtime.model.recall.conversations import Conversation, Mix, mixed_conversation
from runtime.model.recall.facts import KINDS, UNKNOWN, Exchange
from runtime.model.recall.values import Split, draw, is_held_out, name, number

_MIX = Mix(state=0.45, ask=0.4, ask_unknown=0.05, together=0.0, casual=0.0)


def _conversation(seed: int, split: Split = "trained", mix: Mix = _MIX) -> Conversation:
    return Conversation(random.Random(seed), split, mix)


def test_the_same_seed_gives_the_same_conversation() -> None:
    def first(seed: int) -> list[Exchange]:
        conversation = mixed_conversation(random.Random(seed))
        return [conversation.next_exchange() for _ in range(200)]

    assert first(3) == first(3)
    assert first(3) != first(4)


def test_every_answer_holds_the_value_stated_last() -> None:
    conversation = _conversation(5)
    asked = 0
    for _ in range(500):
        conversation.next_exchange()
        if conversation.facts:
            key = conversation.rng.choice(sorted(conversation.facts))
            assert re.search(rf" {conversation.facts[key].value}\.$", conversation.ask([key]).assistant)
            asked += 1
    assert asked > 400


def test_a_corrected_fact_replaces_the_earlier_one() -> None:
    conversation = _conversation(6)
    dog = next(kind for kind in KINDS if kind.key == "dog called")
    conversation.state(dog)
    earlier = conversation.facts[dog.key].value
    conversation.state(dog)
    later = conversation.facts[dog.key].value
    assert earlier != later
    assert later in conversation.ask([dog.key]).assistant


def test_a_fact_never_stated_is_answered_with_not_knowing() -> None:
    conversation = _conversation(7, mix=Mix(state=0.0, ask=0.0, ask_unknown=1.0, casual=0.0))
    assert {conversation.next_exchange().assistant for _ in range(50)} == {UNKNOWN}


def test_a_key_that_is_never_asked_is_stated_but_not_asked_for() -> None:
    spared = frozenset(kind.key for kind in KINDS if kind.key != "code")
    conversation = Conversation(random.Random(8), "trained", _MIX, never_asked=spared)
    for _ in range(300):
        conversation.next_exchange()
    assert conversation.unasked >= spared & conversation.facts.keys()


def test_one_wording_of_a_question_has_one_wording_of_the_answer() -> None:
    answers: dict[str, str] = {}
    for kind in KINDS:
        for question in kind.questions:
            assert answers.setdefault(question.user, question.assistant) == question.assistant
    assert len(answers) == sum(len(kind.questions) for kind in KINDS)


def test_training_never_draws_a_held_out_value_and_the_evaluation_draws_no_other() -> None:
    rng = random.Random(9)
    for source in (name, number):
        assert not any(is_held_out(draw(source, "trained", rng)) for _ in range(500))
        assert all(is_held_out(draw(source, "held_out", rng)) for _ in range(500))
