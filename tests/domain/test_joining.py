"""Outputs joined on their way out tell exactly what they told one by one, cut wherever a stream may break."""

from hypothesis import given
from hypothesis import strategies as st

from runtime.domain.generation import Delta
from runtime.domain.joining import joined
from runtime.domain.messages import AttemptFailed, Handoff, Output
from runtime.domain.sequence import FinishReason, Ref, Sampled
from runtime.domain.turn import Arrived, Give, Opened, Placed, Turn
from runtime.errors import Unavailable
from runtime.ids import BootId, TurnId

WORDS = st.sampled_from(["", "a", " dog", "é", "…\n"])
BOOT = BootId("b")


@st.composite
def answers(draw: st.DrawFn) -> list[Output]:
    """One attempt's outputs, some of several tokens; the last may bring text without a token."""
    ref, index, outputs = Ref(TurnId(draw(st.sampled_from(["one", "two", "three"]))), 1, 1), 0, list[Output]()
    for number in range(draw(st.integers(1, 8))):
        tokens = tuple(Sampled(index + place) for place in range(draw(st.integers(1, 3))))
        outputs.append(Output(ref, index, tokens, draw(WORDS), handoff=None if number else Handoff(4)))
        index += len(tokens)
    tokens = (Sampled(index),) if draw(st.booleans()) else ()
    outputs.append(
        Output(ref, index, tokens, draw(WORDS), FinishReason.STOP, draw(st.sampled_from([None, Handoff(5)])))
    )
    return outputs


def spoken(deltas: list[Delta]) -> list[tuple[int, str]]:
    """The text that is there after each token, and at the end."""
    told, text, count = list[tuple[int, str]](), "", 0
    for delta in deltas:
        assert delta.index == count
        for each in delta.texts():
            count += 1
            text += each
            told.append((count, text))
        text += "" if delta.tokens else delta.text
    return [*told, (count, text)]


def given_out(outputs: list[Output | AttemptFailed], turn: Turn) -> list[Delta]:
    commands = [command for output in outputs if isinstance(output, Output) for command in turn.on(Arrived(output))]
    return [command.delta for command in commands if isinstance(command, Give)]


def newest(deltas: list[Delta]) -> Handoff:
    return [each.handoff for each in deltas if each.handoff][-1]


def placed(ref: Ref) -> Turn:
    turn = Turn(ref.turn)
    turn.on(Opened())
    turn.on(Placed(BOOT))
    return turn


CUTS = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=6)


@given(answers(), CUTS)
def test_a_client_gets_the_same_token_by_token_wherever_the_stream_breaks(
    outputs: list[Output], cuts: list[tuple[int, int]]
) -> None:
    one_by_one = given_out([*outputs], placed(outputs[0].ref))
    turn = placed(outputs[0].ref)
    got: list[Delta] = []
    for first, count in [*cuts, (0, len(outputs))]:
        known = sum(len(delta.tokens) for delta in got)
        if first < len(outputs) and outputs[first].index <= known:
            got += given_out(joined(outputs[first : first + count]), turn)
    assert spoken(got) == spoken(one_by_one)
    assert got[-1].finish is FinishReason.STOP
    assert [each.handoff for each in got if each.handoff][-1] == [each.handoff for each in one_by_one if each.handoff][
        -1
    ]


@given(st.lists(answers(), min_size=2, max_size=3, unique_by=lambda outputs: outputs[0].ref))
def test_attempts_are_joined_apart_and_in_their_order(attempts: list[list[Output]]) -> None:
    mixed = [output for row in zip(*(each[:2] for each in attempts), strict=True) for output in row]
    failed = AttemptFailed(attempts[0][0].ref, Unavailable("gone"))
    together = joined([*mixed, failed])
    assert together.index(failed) == len(together) - 1
    for each in attempts:
        mine = [output for output in together if isinstance(output, Output) and output.ref == each[0].ref]
        assert mine == joined(each[:2])


def test_neighbours_become_one_and_what_tells_more_stays_alone() -> None:
    ref = Ref(TurnId("t"), 1, 1)
    first = Output(ref, 0, (Sampled(7),), "a", handoff=Handoff(1))
    second = Output(ref, 1, (Sampled(8), Sampled(9)), "bc")
    last = Output(ref, 3, (Sampled(5),), "", FinishReason.STOP)
    told = Output(ref, 3, (Sampled(5),), "", FinishReason.STOP, Handoff(2))
    tokens = tuple(map(Sampled, (7, 8, 9, 5)))
    assert joined([first, second, last]) == [
        Output(ref, 0, tokens, "abc", FinishReason.STOP, Handoff(1), ends=(1, 1, 3)),
    ]
    assert joined([first, second, told])[1:] == [told]
    assert joined([*joined([first, second]), last]) == joined([first, second, last])
    assert joined([first, *joined([second, last])]) == joined([first, second, last])
