"""Steps of a model on a device that computes nothing and knows where every tensor is.

A script, because a process that knows such a device knows it for good. `CHECKPOINT...`: prints each one's shapes of
logits.
"""

import sys
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from runtime.domain.steps import Chunk
from runtime.engine.attention import ATTENTION
from runtime.engine.cuda.kv import DeviceKV
from runtime.engine.kv_tensors import DTYPES
from runtime.engine.runner import TorchRunner
from runtime.ids import SequenceId
from runtime.model.checkpoint import open_checkpoint
from runtime.model.loading import load_model
from runtime.model.spec import checkpoint_spec


def chunk(name: str, tokens: int, start: int, table: tuple[int, ...]) -> Chunk:
    return Chunk(SequenceId(name), tuple(range(tokens)), start, table, sample=True)


PREFILLS = (chunk("a", 40, 0, (7, 3)), chunk("b", 33, 32, (4, 5, 9)), chunk("c", 1, 31, (2,)))
DECODES = (chunk("a", 1, 40, (7, 3)), chunk("b", 1, 65, (4, 5, 9)))


def run(path: Path) -> list[tuple[int, ...]]:
    opened = open_checkpoint(path)
    spec = checkpoint_spec(opened, name="t", dtype="bfloat16", page_tokens=32)
    model = load_model(opened, DTYPES[spec.dtype], ATTENTION)
    shapes = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        device = torch.device("pretended", 0)
        model.to_empty(device=device)
        runner = TorchRunner(model, DeviceKV(spec, 20, device))
        for chunks in (PREFILLS, DECODES, (*DECODES, chunk("d", 50, 0, (10, 11)))):
            logits = runner.forward(chunks)
            assert logits.device == device
            shapes.append(tuple(logits.shape))
    return shapes


def main() -> None:
    _setup_privateuseone_for_python_backend("pretended")
    for path in sys.argv[1:]:
        sys.stdout.write(f"{run(Path(path))}\n")


if __name__ == "__main__":
    main()
