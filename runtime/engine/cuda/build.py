"""The native engine on an NVIDIA GPU: the same model, steps and sampling as on the CPU, in the GPU's memory."""

from collections.abc import Callable

import torch

from runtime.domain.batching import Limits
from runtime.domain.pool_size import Room
from runtime.engine.attention import ATTENTION
from runtime.engine.core import EngineCore
from runtime.engine.cuda.graphs import CudaRecorder, GraphedRunner
from runtime.engine.cuda.kv import DeviceKV
from runtime.engine.kv_tensors import DTYPES
from runtime.engine.memory import check_fits, room_of
from runtime.engine.native import NativeCompute, NativeSettings, engine_core, spec_of
from runtime.engine.runner import TorchRunner
from runtime.errors import StartError
from runtime.model.checkpoint import open_checkpoint
from runtime.model.loading import load_model
from runtime.model.tokenizer import Tokenizer


def open_gpu() -> torch.device:
    """The first GPU that this process may see; Ray shows each worker its own. Raises `StartError`."""
    if torch.version.cuda is None:
        raise StartError(f"device cuda: this torch, {torch.__version__}, was built without CUDA: install one with it")
    if not torch.cuda.is_available():
        raise StartError(
            "device cuda: torch finds no GPU: its driver is older than torch's CUDA "
            f"{torch.version.cuda}, or CUDA_VISIBLE_DEVICES hides it"
        )
    return torch.device("cuda", 0)


def free_on_gpu(device: torch.device) -> int:
    """Bytes of its memory that nobody has taken."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free)


def build_on_device(
    settings: NativeSettings, limits: Limits, pages: Callable[[Room], int], device: torch.device, free: int
) -> EngineCore:
    """An engine core whose weights and pages are on `device`, of whose memory `free` bytes may be taken.

    Raises what `build_native` raises.
    """
    torch.set_num_threads(settings.threads)
    checkpoint = open_checkpoint(settings.path)
    spec = spec_of(checkpoint, settings)
    count = pages(room_of(checkpoint, spec, free))
    check_fits(checkpoint, spec, count, free)
    tokenizer = Tokenizer(settings.path)
    model = load_model(checkpoint, DTYPES[settings.dtype], ATTENTION)
    model.to(device)  # type: ignore[arg-type]  # its decorator hides what it takes
    kv = DeviceKV(spec, count, device)
    plain = TorchRunner(model, kv)
    plain.probe()
    graphed = device.type == "cuda"
    runner = GraphedRunner(plain, model, kv, CudaRecorder(), limits.max_running) if graphed else plain
    return engine_core(spec, count, limits, NativeCompute(runner), tokenizer)
