"""`baton session`: what the mesh keeps, shown and changed by name."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from batonmesh import Client
from runtime.cli.app import app

RUNNER = CliRunner()


@pytest.fixture
def session(target: str) -> str:
    with Client(target) as client:
        made = client.sessions.create("simulated", metadata={"who": "tester"}).id
        for line in ("One.", "Two.", "Three."):
            client.sessions.complete(made, line, max_tokens=3, temperature=0.0)
        return made


def baton(target: str, *words: str, ends: int = 0) -> str:
    result = RUNNER.invoke(app, ["session", words[0], "--target", target, *words[1:]])
    assert result.exit_code == ends, result.output
    return result.output


def test_sessions_are_listed_with_what_is_known_of_them(target: str, session: str) -> None:
    listed = baton(target, "list")
    assert re.search(rf"{session} +simulated +\d{{4}}-\d\d-\d\d .* UTC +who=tester +3 +\d+ +never", listed)


def test_a_session_shows_its_branches_and_what_was_said(target: str, session: str) -> None:
    with Client(target) as client:
        client.sessions.update(session, limits={"turns": 9}, ttl=7300)
    shown = baton(target, "show", session)
    assert re.search(r"version 2, expires in 2:0\d:\d\d; on_conflict reject, on_disconnect continue", shown)
    assert re.search(r"turns +3 +0 +9 *\n", shown)
    assert re.search(r"completion_tokens +9 +0 *\n", shown)
    assert re.search(r"main +3 +\d+ +turn-\w+", shown)
    assert [line for line in shown.splitlines() if line.startswith("user")] == [
        "user  One.", "user  Two.", "user  Three.",
    ]  # fmt: skip


def test_a_fork_and_a_rollback(target: str, session: str) -> None:
    assert baton(target, "fork", session, "other").startswith("Branch other begins after 3 turns, ")
    assert baton(target, "rollback", session, "2").startswith("Branch main has 1 turns ")
    shown = baton(target, "show", session, "--branch", "main")
    assert "Two." not in shown
    assert "Three." in baton(target, "show", session, "--branch", "other")
    assert baton(target, "rollback", session, "1").startswith("Branch main has 0 turns and 0 tokens")
    assert "cannot be taken back" in baton(target, "rollback", session, "1", ends=2)
    told = f"branch other of {session} is deleted.\n"
    assert baton(target, "delete", session, "--branch", "other", "--yes") == told
    assert "has no branch 'other'" in baton(target, "delete", session, "--branch", "other", "--yes", ends=1)


def test_the_turn_that_runs_is_shown_to_its_end(target: str, session: str) -> None:
    assert baton(target, "tail", session) == "No turn runs on branch main.\n"
    with Client(target) as client:
        stream = client.sessions.run(session, "Go on.", max_tokens=400, temperature=0.0)
        for _ in range(3):
            next(stream)
        shown = baton(target, "tail", session)
        answer = client.sessions.items(session)[-1].message.content
    assert shown.startswith(answer)
    assert "400 tokens" in shown


def test_a_deleted_session_is_gone(target: str, session: str) -> None:
    assert baton(target, "delete", session, "--yes") == f"{session} is deleted.\n"
    assert "no such session" in baton(target, "show", session, ends=1)


def test_a_session_goes_out_into_a_file_and_comes_back_unless_it_was_erased(
    target: str, session: str, tmp_path: Path
) -> None:
    file = tmp_path / "session.baton"
    assert re.match(rf"\S*session\.baton has {session}, [\d,]+ bytes\.\n", baton(target, "export", session, str(file)))
    assert file.stat().st_mode & 0o777 == 0o600
    assert "cannot be written" in baton(target, "export", session, str(file), ends=2)
    shown = baton(target, "show", session)
    baton(target, "delete", session, "--yes")
    assert baton(target, "import", str(file)) == f"{session} is here: main with 3 turns.\n"
    # What was spent does not go along.
    assert _from_its_branches(baton(target, "show", session)) == _from_its_branches(shown)
    with Client(target) as client:
        assert client.sessions.complete(session, "Four.", max_tokens=3, temperature=0.0).text
    assert "is here already" in baton(target, "import", str(file), ends=1)
    erased = baton(target, "erase", session, "--yes")
    assert re.search(r"sessions +\d+ rows", erased)
    assert re.search(r"decode-0 +\d+ pages +\d+ *\n", erased)
    assert "no such session" in baton(target, "show", session, ends=1)
    assert "was erased here" in baton(target, "import", str(file), ends=1)


def test_a_tampered_file_is_refused_and_half_a_file_is_not_left_behind(
    target: str, session: str, tmp_path: Path
) -> None:
    file = tmp_path / "session.baton"
    baton(target, "export", session, str(file))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    baton(target, "delete", session, "--yes")
    assert "its digest is not that of its content" in baton(target, "import", str(file), ends=1)
    assert "no such session" in baton(target, "show", session, ends=1)
    nothing = tmp_path / "nothing.baton"
    assert "no such session" in baton(target, "export", session, str(nothing), ends=1)
    assert not nothing.exists()


def _from_its_branches(shown: str) -> str:
    return shown[shown.index("main ") :]
