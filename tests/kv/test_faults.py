"""Faults on purpose: that each happens, and that answers stay what they are."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.errors import ConfigError
from runtime.kv.transport.faults import VARIABLE, Faults, Kind, parse_faults
from runtime.mesh.local import local_mesh
from tests.mesh.test_local import PREFILL, asked, config, expected


def faults(text: str) -> Faults:
    return parse_faults(text, random.Random(1))


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
        assert all(moved) == text.startswith("send:delay"), "the faults did happen"
        mesh.check()


def test_a_kill_kills() -> None:
    code = """
import asyncio, random
from runtime.kv.transport.faults import _FaultySender, parse_faults
asyncio.run(_FaultySender(None, parse_faults("commit:kill:@1", random.Random(1))).commit())
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
