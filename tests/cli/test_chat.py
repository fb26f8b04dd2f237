"""`baton chat` talks on a session: the mesh keeps it, and lets go of an answer that is no longer wanted."""

import time
from collections.abc import Iterator

import pytest
from rich.console import Console
from typer.testing import CliRunner

from batonmesh import Client, Options
from runtime.cli.app import app
from runtime.cli.talk.chat import Conversation
from runtime.engine.simulated import SimulatedTokenizer
from tests.cli.conftest import Served
from tests.services.session_mesh import expected

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


def text(tokens: list[int]) -> str:
    decoder = SimulatedTokenizer().decoder()
    return "".join(decoder.push(token) for token in tokens)


def talk(client: Client, options: Options, console: Console, system: str | None = None) -> Conversation:
    return Conversation(client, "simulated", system, options, console, quiet=True)


def said(client: Client, conversation: Conversation) -> list[tuple[str, str]]:
    items = client.sessions.items(conversation.session)
    return [(item.message.role, item.message.content) for item in items]


def test_lines_are_answered_until_the_input_ends(target: str) -> None:
    asked = ["chat", "--target", target, "--max-tokens", "3"]
    result = RUNNER.invoke(app, asked, input="Hello.\n\nAnd again.\n")
    assert result.exit_code == 0
    assert result.stdout.count("TTFT") == 2
    assert "Go on with: baton chat --session sess-" in result.stdout


def test_every_turn_stands_on_all_that_was_said_before(client: Client) -> None:
    conversation = talk(client, SHORT, Console())
    texts = ["My dog is called Rex.", "What is my dog called?"]
    for line in texts:
        conversation.say(line)
    answers = [content for role, content in said(client, conversation) if role == "assistant"]
    assert answers == [text(tokens) for tokens in expected(*texts, tokens=3)]


def test_the_system_is_told_once(client: Client) -> None:
    conversation = talk(client, SHORT, Console(), "Be brief.")
    conversation.say("Hello.")
    conversation.say("And again.")
    assert [role for role, _ in said(client, conversation)] == ["system", "user", "assistant", "user", "assistant"]


def test_a_conversation_that_starts_over_knows_nothing(target: str) -> None:
    asked = ["chat", "--target", target, "--max-tokens", "3", "--quiet"]
    said = RUNNER.invoke(app, asked, input="Hello.\nHello.\n/new\nHello.\n").stdout
    _, first, second, told, fresh, _ = said.split("> ")
    assert first == fresh != second
    assert told == "A new conversation.\n"


def test_a_conversation_is_gone_on_with_where_it_was_left(target: str) -> None:
    asked = ["chat", "--target", target, "--max-tokens", "3", "--quiet"]
    RUNNER.invoke(app, asked, input="My dog is called Rex.\n")
    gone_on = RUNNER.invoke(app, [*asked, "--last"], input="What is my dog called?\n").stdout
    first, second = map(text, expected("My dog is called Rex.", "What is my dog called?", tokens=3))
    assert gone_on.splitlines()[1:] == ["> My dog is called Rex.", first, f"> {second}", "> "]


def test_an_answer_that_was_stopped_is_over_and_stays_as_far_as_it_came(served: Served, client: Client) -> None:
    conversation = talk(client, LONG, InterruptedConsole())
    conversation.say("Tell me everything.")
    (_, asked), (_, answer) = said(client, conversation)
    assert asked == "Tell me everything."
    assert 3 <= len(answer.split()) < 2000
    wait_idle(served)


def test_a_question_that_was_refused_is_forgotten(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = talk(client, SHORT, Console())
    conversation.say("Hello.")
    conversation.say("x" * 5000)
    assert len(said(client, conversation)) == 2
    assert "4096 tokens" in capsys.readouterr().err
    conversation.say("Still there?")
    assert len(said(client, conversation)) == 4
