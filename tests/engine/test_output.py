"""The output stream: what is shown after each token, where it ends, and that a replay shows the same."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.domain.sequence import FinishReason, Sampling
from runtime.engine.output import OutputStream, StopMatcher

EOS = 999


class Letters:
    """Token n is the n-th piece; the decoder itself holds back a lone surrogate piece marked by '~'."""

    def __init__(self, pieces: list[str]) -> None:
        self._pieces = pieces
        self._held = ""

    def push(self, token: int) -> str:
        text = self._held + self._pieces[token]
        self._held = text if text.endswith("~") else ""
        return "" if self._held else text

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


def stream(pieces: list[str], sampling: Sampling) -> OutputStream:
    return OutputStream(sampling, frozenset({EOS}), Letters(pieces))


def shown(pieces: list[str], sampling: Sampling) -> tuple[list[str], FinishReason | None]:
    output = stream(pieces, sampling)
    texts: list[str] = []
    for token in range(len(pieces)):
        texts.append(output.push(token))
        if output.finish is not None:
            break
    return texts, output.finish


def test_before_min_tokens_neither_a_token_nor_a_stop_string_ends_the_answer() -> None:
    sampling = Sampling(max_tokens=9, min_tokens=2, stop=("END",), stop_token_ids=(1,))
    assert shown(["END", "E", "ND", "END!"], sampling) == (["END", "E", "ND", ""], FinishReason.STOP)
    assert shown(["a", "b"], Sampling(max_tokens=2, min_tokens=2)) == (["a", "b"], FinishReason.LENGTH)
    output = stream(["a", "b", "c"], replace(sampling, min_tokens=1))
    assert [output.push(0), output.push(1), output.finish] == ["a", "", FinishReason.STOP]


def test_text_flows_through_when_nothing_can_stop_it() -> None:
    assert shown(["Hel", "lo"], Sampling(max_tokens=9)) == (["Hel", "lo"], None)


def test_the_last_allowed_token_ends_with_length_and_its_text_is_shown() -> None:
    assert shown(["a", "b", "c"], Sampling(max_tokens=2)) == (["a", "b"], FinishReason.LENGTH)


def test_a_stop_string_across_tokens_is_cut_and_what_came_before_is_kept() -> None:
    texts, finish = shown(["one E", "N", "D two"], Sampling(max_tokens=9, stop=("END",)))
    assert (texts, finish) == (["one ", "", ""], FinishReason.STOP)


def test_a_false_beginning_of_a_stop_string_is_released_in_order() -> None:
    texts, finish = shown(["a<", "<", "stopper"], Sampling(max_tokens=9, stop=("<stop>",)))
    assert (texts, finish) == (["a", "<", "<stopper"], None)


def test_held_back_text_is_shown_when_the_length_is_reached() -> None:
    assert shown(["a", "EN"], Sampling(max_tokens=2, stop=("END",))) == (["a", "EN"], FinishReason.LENGTH)


def test_a_stop_string_completed_by_the_last_allowed_token_is_a_stop() -> None:
    assert shown(["a", "END"], Sampling(max_tokens=2, stop=("END",))) == (["a", ""], FinishReason.STOP)


def test_an_end_of_turn_token_has_no_text_and_releases_what_was_held() -> None:
    output = stream(["a E"], Sampling(max_tokens=9, stop=("END",)))
    assert output.push(0) == "a "
    assert output.push(EOS) == "E"
    assert output.finish is FinishReason.STOP


def test_an_ignored_end_of_turn_token_does_not_end() -> None:
    pieces = ["x"] * (EOS + 1)
    output = stream(pieces, Sampling(max_tokens=9, ignore_eos=True))
    assert output.push(EOS) == "x"
    assert output.finish is None


def test_a_stop_token_id_ends_even_when_end_of_turn_is_ignored() -> None:
    output = stream(["a", "b"], Sampling(max_tokens=9, ignore_eos=True, stop_token_ids=(1,)))
    assert output.push(0) == "a"
    assert output.push(1) == ""
    assert output.finish is FinishReason.STOP


def test_what_the_decoder_still_holds_can_complete_a_stop_string() -> None:
    assert shown(["ab~"], Sampling(max_tokens=1, stop=("b~",))) == (["a"], FinishReason.STOP)


def test_a_token_after_the_end_is_our_bug() -> None:
    output = stream(["a", "b"], Sampling(max_tokens=1))
    output.push(0)
    with pytest.raises(AssertionError, match="after the end"):
        output.push(1)


ALPHABET = st.text("ab", max_size=24)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3).map(tuple)


@given(text=ALPHABET, stops=STOPS, seed=st.integers(0, 2**32))
def test_the_cut_does_not_depend_on_how_the_text_was_divided(text: str, stops: tuple[str, ...], seed: int) -> None:
    def run(pieces: list[str]) -> tuple[str, bool]:
        matcher, out = StopMatcher(stops), ""
        for piece in pieces:
            more, stopped = matcher.feed(piece)
            out += more
            if stopped:
                return out, True
        return out + matcher.flush(), False

    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    cut = min(ends)[1] if ends else None
    rng = random.Random(seed)
    divided, rest = [], text
    while rest:
        size = rng.randint(1, len(rest))
        divided.append(rest[:size])
        rest = rest[size:]
    expected = (text[:cut], True) if ends else (text, False)
    assert run(list(text)) == run(divided) == expected


@given(pieces=st.lists(st.text("abé~", max_size=3), min_size=1, max_size=16), stops=STOPS, data=st.data())
def test_a_replay_from_any_token_continues_with_the_same_text(
    pieces: list[str], stops: tuple[str, ...], data: st.DataObject
) -> None:
    limit = data.draw(st.integers(1, 20))
    sampling = Sampling(max_tokens=limit, stop=stops, min_tokens=data.draw(st.integers(0, limit)))
    texts, finish = shown(pieces, sampling)
    for boundary in range(len(texts)):
        again = stream(pieces, sampling)
        replayed = [again.push(token) for token in range(boundary)]
        continued = [again.push(token) for token in range(boundary, len(texts))]
        assert replayed + continued == texts
        assert again.finish is finish
