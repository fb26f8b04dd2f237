"""Decode steps as graphs: the same tokens, few graphs, and a model that cannot be recorded runs as before.

On the CPU what was recorded is run anew out of the same tensors, which is what a graph does.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from runtime.domain.batching import Limits
from runtime.domain.sequence import Sampling
from runtime.engine.attention import ATTENTION
from runtime.engine.core import EngineCore
from runtime.engine.cuda.build import open_gpu
from runtime.engine.cuda.graphs import CudaRecorder, GraphedRunner, Recorder
from runtime.engine.cuda.kv import DeviceKV
from runtime.engine.native import NativeCompute, NativeSettings, engine_core, spec_of
from runtime.engine.runner import TorchRunner
from runtime.model.checkpoint import open_checkpoint
from runtime.model.loading import load_model
from runtime.model.tokenizer import Tokenizer
from tests.engine.answering import GREEDY, answers, prompt, sequence
from tests.engine.generating import generated

KINDS = ("llama", "qwen3", "gemma2", "mistral")
SIZES = (1, 31, 32, 33, 150)
PAGES = 100
DEVICES = [pytest.param("cpu", id="cpu"), pytest.param("cuda", id="cuda", marks=pytest.mark.cuda)]


class Counting:
    """Counts what is recorded; without a GPU it runs that anew."""

    def __init__(self, device: torch.device) -> None:
        self.recorded = 0
        self._real = CudaRecorder() if device.type == "cuda" else None

    def record(self, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        self.recorded += 1
        if self._real is not None:
            return self._real.record(run)
        output = run()

        def replay() -> None:
            output.copy_(run())

        return output, replay


class Refusing:
    def record(self, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        raise RuntimeError("it asks for a number in the middle")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device("cpu") if request.param == "cpu" else open_gpu()


def graphed(path: Path, device: torch.device, recorder: Recorder, most_rows: int = 8) -> tuple[EngineCore, DeviceKV]:
    opened = open_checkpoint(path)
    spec = spec_of(opened, NativeSettings("tiny", path, "float32", 32, 1))
    model, kv = load_model(opened, torch.float32, ATTENTION), DeviceKV(spec, PAGES, device)
    model.to(device)  # type: ignore[arg-type]  # its decorator hides what it takes
    runner = GraphedRunner(TorchRunner(model, kv), model, kv, recorder, most_rows)
    return engine_core(spec, PAGES, Limits(96, 8), NativeCompute(runner), Tokenizer(path)), kv


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_token_exact_alone_and_together(
    kind: str,
    device: torch.device,
    checkpoint: Callable[[str], Path],
    reference: Callable[[str], PreTrainedModel],
) -> None:
    recorder = Counting(device)
    core, kv = graphed(checkpoint(kind), device, recorder)
    expected = {str(size): generated(reference(kind), list(prompt(size)), 64) for size in SIZES}
    for size in SIZES:
        assert answers(core, [sequence(str(size), prompt(size), GREEDY)]) == {str(size): expected[str(size)]}
    alone = recorder.recorded
    assert alone == len({1, 2, 4, 8})  # of pages, for one row
    assert answers(core, [sequence(str(size), prompt(size), GREEDY) for size in SIZES]) == expected
    assert recorder.recorded > alone
    before = recorder.recorded
    assert answers(core, [sequence(f"again-{size}", prompt(size), GREEDY) for size in SIZES])
    assert recorder.recorded == before
    assert not any(kv.read_page(kv.zero_page, 32).strip(b"\0"))


def test_what_is_sampled_out_of_a_graph_is_the_callers_own(
    device: torch.device, checkpoint: Callable[[str], Path], engine: Callable[..., EngineCore]
) -> None:
    core, _ = graphed(checkpoint("llama"), device, Counting(device))
    asked = [
        sequence(str(seed), prompt(40), Sampling(max_tokens=30, temperature=0.8, seed=seed, ignore_eos=True))
        for seed in range(3)
    ]
    assert answers(core, asked) == answers(engine("llama"), asked)


def test_more_rows_than_graphs_are_for_run_as_before(
    checkpoint: Callable[[str], Path], reference: Callable[[str], PreTrainedModel]
) -> None:
    recorder = Counting(torch.device("cpu"))
    core, _ = graphed(checkpoint("llama"), torch.device("cpu"), recorder, most_rows=0)
    found = answers(core, [sequence(str(size), prompt(size), GREEDY) for size in (31, 32)])
    assert found == {str(size): generated(reference("llama"), list(prompt(size)), 64) for size in (31, 32)}
    assert recorder.recorded == 0


def test_a_model_that_cannot_be_recorded_is_told_once_and_runs(
    checkpoint: Callable[[str], Path], reference: Callable[[str], PreTrainedModel], caplog: pytest.LogCaptureFixture
) -> None:
    core, _ = graphed(checkpoint("llama"), torch.device("cpu"), Refusing())
    expected = generated(reference("llama"), list(prompt(33)), 64)
    assert answers(core, [sequence("a", prompt(33), GREEDY)]) == {"a": expected}
    assert [record.message for record in caplog.records] == [
        "decode steps of this model cannot be recorded, and are launched one by one: it asks for a number in the middle"
    ]
