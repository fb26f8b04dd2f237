"""Only what a run started is ended with it."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from actors.processes import end_run, mark, of_run

_SLEEPER = "import time; print(flush=True); time.sleep(100)"
_STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(100)"
_PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {_SLEEPER!r}], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
print(child.pid, flush=True)
"""


def started(code: str, run: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], env=os.environ | mark(run), stdout=subprocess.PIPE, text=True)


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[str]]:
    with started(_SLEEPER, "bystander") as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_run_is_ended_and_nobody_else_is(bystander: subprocess.Popen[str]) -> None:
    with started(_SLEEPER, "ours") as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert [found.pid for found in of_run("ours")] == [process.pid]
        assert end_run("ours", patience_s=10) == 1
    assert of_run("ours") == []
    assert bystander.poll() is None


def test_who_does_not_listen_is_killed() -> None:
    with started(_STUBBORN, "stubborn") as process:
        assert process.stdout is not None
        process.stdout.readline()
        end_run("stubborn", patience_s=0.1)
        assert of_run("stubborn") == []


def test_a_grandchild_in_a_session_of_its_own_is_found_after_its_parent_died() -> None:
    with started(_PARENT, "orphans") as parent:
        assert parent.stdout is not None
        grandchild = int(parent.stdout.readline())
        parent.wait()
    assert [found.pid for found in of_run("orphans")] == [grandchild]
    assert end_run("orphans", patience_s=10) == 1
    assert of_run("orphans") == []
