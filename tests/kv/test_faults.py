"""Faults on purpose: that each happens, and that answers stay what they are."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.errors import ConfigError
from runtime.kv.transport.faults import VARIABLE, Faults, Kind, read_faults
from runtime.mesh.local import local_mesh
from tests.mesh.test_local import PREFILL, asked, config, expected


def faults(text: str, worker: str = "prefill-0") -> Faults:
    return read_faults(text, worker, random.Random(1))


def test_a_share_strikes_that_often_and_a_number_once() -> None:
    it = faults("send:drop:0.25,send:delay:@3:0.5,commit:kill:0")
    due = [it.due("send") for _ in range(1000)]
    assert 200 < it.happened["send:drop"] < 300
    assert [number for number, each in enumerate(due, 1) if any(fault.kind is Kind.DELAY for fault in each)] == [3]
    assert it.due("commit") == []


@pytest.mark.parametrize(
    "text", ["send", "send:drop", "send:melt:1", "moon:drop:1", "commit:drop:1", "send:drop:often"]
)
def test_what_is_no_fault_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match=VARIABLE):
        faults(text)


@pytest.mark.parametrize(
    "text",
    [
        "send:drop:0.5",
        "send:spoil:0.5",
        "land:spoil:0.5",
        "land:drop:0.5",
        "send:delay:0.2:0.02",
        "fence:delay:1:0.05,send:drop:0.5",
        "expect:delay:0.5:0.01,open:delay:0.5:0.02,step:delay:0.1:0.01",
    ],
)
@pytest.mark.parametrize("transport", ["auto", "grpc"])
async def test_answers_are_those_of_an_unharmed_mesh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, transport: str
) -> None:
    monkeypatch.setenv(VARIABLE, text)
    base = config(tmp_path)
    harmed = base.model_copy(update={"handoff": base.handoff.model_copy(update={"transport": transport})})
    async with local_mesh(harmed) as mesh, asked(mesh) as user:
        moved = []
        for number in range(4):
            prompt = [number] * 8 + list(b"a prompt of its own, as long as a few pages are")
            answer, final = await user.ask(prompt)
            assert answer == expected(prompt)
            assert final.handoff.prefill_worker == PREFILL
            moved.append(final.handoff.moved_tokens == len(prompt) - 1)
        assert all(moved) == text.startswith(("send:delay", "expect:delay")), "the faults did happen"
        mesh.check()


def test_a_kill_kills() -> None:
    code = """
import asyncio, random
from runtime.kv.transport.faults import _FaultySender, read_faults
from runtime.telemetry import log_to_stderr
log_to_stderr("worker")
asyncio.run(_FaultySender(None, read_faults("commit:kill:@1", "any", random.Random(1))).commit())
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert killed.returncode == -9
    assert "fault=commit:kill" in killed.stderr, "and says so before"


def test_a_fault_of_one_worker_spares_the_others() -> None:
    text = "prefill-0/send:drop:1,commit:delay:1:0.5"
    here, there = faults(text), faults(text, "decode-0")
    for it in (here, there):
        it.due("send")
        it.due("commit")
    assert here.happened == {"send:drop": 1, "commit:delay": 1}
    assert there.happened == {"commit:delay": 1}


def test_a_file_tells_faults_to_a_process_that_runs_and_takes_them_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "faults"
    it = faults(f"@{file}")
    assert it.due("step") == [], "there is no file yet"
    for number, (said, happens) in enumerate((("step:stop:1\n", 1), ("step:melt:1", 0), ("send:drop:1", 0))):
        file.write_text(said)
        os.utime(file, ns=(number, number))
        assert len(it.due("step")) == happens, said
    assert "'step:melt:1' is no fault" in caplog.text
    assert len(it.due("send")) == 1
    file.unlink()
    assert it.due("send") == []


def test_times_are_counted_anew_when_a_file_says_something_else(tmp_path: Path) -> None:
    file = tmp_path / "faults"
    it = faults(f"@{file}")
    for number in range(2):
        file.write_text(f"step:delay:@2:0.{number + 1}")
        os.utime(file, ns=(number, number))
        assert [len(it.due("step")) for _ in range(3)] == [0, 1, 0]
