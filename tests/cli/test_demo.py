"""The demo: a script that the shipped model can know, played on a mesh, with honest words about what came of it."""

import io
import random
import re

import pytest
from anyio.from_thread import start_blocking_portal
from rich.console import Console
from typer.testing import CliRunner

from runtime.cli.app import app
from runtime.cli.talk.demo import run_demo
from runtime.cli.talk.script import EARLIER, LIVE, Line
from runtime.config import Config, MeshConfig
from runtime.kv_settings import REMOTE_MIN_TOKENS
from runtime.mesh.local import local_mesh
from runtime.model.recall.facts import KINDS, Exchange
from runtime.model.recall.small_talk import small_talk
from tests.cli.conftest import Served

RUNNER = CliRunner()


def fits(exchange: Exchange, line: Line) -> bool:
    """Whether the line is this exchange with some value."""
    user, answer = (re.escape(text).replace(r"\{value\}", "{}") for text in (exchange.user, exchange.assistant))
    heard = re.fullmatch(user.format("(.+)"), line.user)
    if heard is None or "{}" not in user:
        told = re.fullmatch(answer.format("(.+)"), line.answer)
        return heard is not None and told is not None
    return re.fullmatch(answer.format(re.escape(heard[1])), line.answer) is not None


def plain(line: Line) -> Line:
    """Without the word that opens a correction."""
    said = line.user.removeprefix("Actually, ")
    return Line(said[0].upper() + said[1:], line.answer)


def test_the_script_says_nothing_that_the_shipped_model_never_learned() -> None:
    facts = [exchange for kind in KINDS for exchange in (*kind.statements, *kind.questions)]
    rng = random.Random(0)
    chatter = {small_talk(rng) for _ in range(200_000)}
    unknown = [
        line
        for line in map(plain, (*EARLIER, *LIVE))
        if Exchange(line.user, line.answer) not in chatter and not any(fits(fact, line) for fact in facts)
    ]
    assert unknown == []


def test_every_question_of_the_script_was_answered_by_what_was_said_before() -> None:
    said = " ".join(line.user for line in (*EARLIER, *LIVE))
    for value in ("Rex", "4417", "9052", "Lisbon"):
        assert value in said
        assert any(value in line.answer for line in LIVE)


def test_a_mesh_that_serves_another_model_is_not_judged(served: Served) -> None:
    told = io.StringIO()
    report = run_demo(served.mesh.grpc, Console(file=told))
    assert [one.right for one in report.played] == [None] * len(LIVE)
    assert report.played[0].reply.handoff.prefill_worker == "prefill-0"
    assert report.moved_tokens > 500
    assert "nobody knows what a right answer is" in told.getvalue()
    assert "pages" in told.getvalue()


def test_the_demo_command_ends_well_without_a_judgement(target: str) -> None:
    assert RUNNER.invoke(app, ["demo", "--target", target]).exit_code == 0


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> object:
    config = Config(mesh=MeshConfig(name="demo", state=tmp_path_factory.mktemp("state")))
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(local_mesh(config)) as mesh:
        yield mesh.grpc


def test_the_shipped_model_gets_its_first_prompt_by_handoff_and_is_judged(shipped: str) -> None:
    told = io.StringIO()
    report = run_demo(shipped, Console(file=told, width=200))
    first = report.played[0].reply.handoff
    assert first.moved_tokens == first.prompt_tokens - 1 >= REMOTE_MIN_TOKENS
    assert (first.transport, first.moved_pages) == ("shm", -(-first.moved_tokens // 32))
    right = sum(one.right is True for one in report.played)
    assert f"{right} of {len(LIVE)} answers were right" in told.getvalue()
    assert told.getvalue().count("wrong, it should be") == report.wrong == len(LIVE) - right
