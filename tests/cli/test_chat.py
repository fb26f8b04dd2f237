"""`baton chat` keeps the conversation, and lets go of an answer that is no longer wanted."""

import time
from collections.abc import Iterator, Sequence

import pytest
from rich.console import Console
from typer.testing import CliRunner

from batonmesh import Client, Options
from runtime.cli.app import app
from runtime.cli.talk.chat import Conversation
from runtime.domain.sequence import Sampling
from runtime.engine.simulated import SimulatedTokenizer, continuation
from tests.cli.conftest import Served

RUNNER = CliRunner()
LONG: Options = {"max_tokens": 2000, "temperature": 0.0}
SHORT: Options = {"max_tokens": 3, "temperature": 0.0}


@pytest.fixture
def client(target: str) -> Iterator[Client]:
    with Client(target) as client:
        yield client


class InterruptedConsole(Console):
    """Somebody presses Ctrl-C when the third piece of an answer is shown."""

    pieces = 0

    def out(self, *objects: object, **more: object) -> None:
        self.pieces += 1
        if self.pieces == 3:
            raise KeyboardInterrupt


def wait_idle(served: Served) -> None:
    ends = time.monotonic() + 20
    while served.portal.call(served.mesh.gateway.role.in_flight):
        assert time.monotonic() < ends, "the answer was never cancelled"


def expected(messages: Sequence[dict[str, str]]) -> str:
    tokenizer = SimulatedTokenizer()
    prompt = tokenizer.render_chat([{**message} for message in messages])
    decoder = tokenizer.decoder()
    return "".join(decoder.push(token) for token in continuation(prompt, Sampling(max_tokens=3, temperature=0.0)))


def talk(client: Client, options: Options, console: Console) -> Conversation:
    return Conversation(client, "simulated", None, options, console, quiet=True)


def test_lines_are_answered_until_the_input_ends(target: str) -> None:
    asked = ["chat", "--target", target, "--max-tokens", "3"]
    result = RUNNER.invoke(app, asked, input="Hello.\n\nAnd again.\n")
    assert result.exit_code == 0
    assert result.stdout.count("TTFT") == 2


def test_every_turn_sends_all_that_was_said_before(client: Client) -> None:
    conversation = talk(client, SHORT, Console())
    conversation.say("My dog is called Rex.")
    conversation.say("What is my dog called?")
    *before, answer = conversation.messages
    assert [message["role"] for message in before] == ["user", "assistant", "user"]
    assert answer["content"] == expected(before)


def test_a_conversation_that_starts_over_knows_nothing(target: str) -> None:
    asked = ["chat", "--target", target, "--max-tokens", "3", "--quiet"]
    said = RUNNER.invoke(app, asked, input="Hello.\nHello.\n/new\nHello.\n").stdout
    _, first, second, told, fresh, _ = said.split("> ")
    assert first == fresh != second
    assert told == "A new conversation.\n"


def test_an_answer_that_was_stopped_is_cancelled_and_stays_as_far_as_it_came(served: Served, client: Client) -> None:
    conversation = talk(client, LONG, InterruptedConsole())
    conversation.say("Tell me everything.")
    asked, answer = conversation.messages
    assert asked["content"] == "Tell me everything."
    assert len(answer["content"].split()) == 3
    wait_idle(served)


def test_a_question_that_was_refused_is_forgotten(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = talk(client, SHORT, Console())
    conversation.say("Hello.")
    before = [*conversation.messages]
    conversation.say("x" * 5000)
    assert conversation.messages == before
    assert "4096 tokens" in capsys.readouterr().err
    conversation.say("Still there?")
    assert len(conversation.messages) == 4
