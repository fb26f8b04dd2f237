"""What must be there before an NVIDIA GPU is used. Never imports torch, so that it costs nothing to ask."""

from runtime.engine.neuron.preflight import Surroundings
from runtime.errors import StartError

# The second is how Windows shows its GPU to a Linux inside.
_DEVICES = ("nvidia[0-9]*", "dxg")


def gpus(here: Surroundings) -> list[str]:
    """The GPUs that the driver shows."""
    return sorted(path.name for pattern in _DEVICES for path in (here.root / "dev").glob(pattern))


def check_gpu(here: Surroundings) -> None:
    """Raises `StartError` with what is missing and how to get it."""
    if not gpus(here):
        raise StartError(
            "device cuda: there is no /dev/nvidia0: this machine has no NVIDIA GPU, or its driver is not loaded; in a "
            "container, it was not given one (docker run --gpus all)"
        )
