"""What must be there before a Neuron device is used, and what its own errors mean. Never imports torch or the vendor's
packages, which read the environment when they are imported."""

import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from runtime.errors import StartError

INSTALL = (
    'pip install "torch-neuronx==2.13.*" "neuronx-cc==2.*" nki --extra-index-url https://pip.repos.neuron.amazonaws.com'
)
TORCH = "2.13"
# On PyPI these names hold packages that only say that they are the wrong ones.
PLACEHOLDERS = {"torch-neuronx": "1.0", "nki": "0.0.1", "vllm-neuron": "0.1.0"}
_PACKAGES = {"torch": ("torch-neuronx", "neuronx-cc", "nki"), "lite": ("vllm-neuron",)}
_LITE_MODULE = "libtorch_neuronx_lite"
_LOGICAL_NC = "NEURON_LOGICAL_NC_CONFIG"
_COMPILER_FLAGS = "NEURON_CC_FLAGS"


def installed_version(package: str) -> str | None:
    """The version of an installed distribution, None when there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _has_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a check may look at: the file system from `root` on, installed packages, modules, the environment."""

    root: Path = Path("/")
    version: Callable[[str], str | None] = installed_version
    has_module: Callable[[str], bool] = _has_module
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)


def devices(here: Surroundings) -> list[str]:
    """The Neuron devices that the driver shows."""
    return sorted(path.name for path in (here.root / "dev").glob("neuron[0-9]*"))


def check_neuron(api: str, logical_nc: int | None, here: Surroundings) -> None:
    """`api` is `torch` or `lite`. Raises `StartError` with what is missing and how to get it."""
    if not devices(here):
        raise StartError(
            "device neuron: there is no /dev/neuron0: this machine has no Neuron device, or its driver "
            "(aws-neuronx-dkms) is not loaded. To try the mesh without one, say `stand_in: true` under `neuron`"
        )
    for package in _PACKAGES[api]:
        if fault := package_fault(package, here):
            raise StartError(f"device neuron: {fault}")
    if api == "lite" and not here.has_module(_LITE_MODULE):
        raise StartError(f"device neuron: {_LITE_MODULE} is missing: it comes with vLLM's plugin for Neuron")
    _check_logical_nc(logical_nc, here.environment)


def package_fault(package: str, here: Surroundings) -> str | None:
    """Why a package of the vendor's will not do, and how to get it; None when it will."""
    version = here.version(package)
    if version is None:
        if package == "torch-neuronx" and here.version("torch-xla") is not None:
            return f"{package} is not installed, only torch-xla, whose use ended with torch 2.9: {INSTALL}"
        return f"{package} is not installed: {INSTALL}"
    if version == PLACEHOLDERS.get(package):
        return f"{package} {version} is a placeholder from PyPI, not the package: pip uninstall {package}; {INSTALL}"
    if package == "torch-neuronx" and version.split(".")[:2] != TORCH.split("."):
        return f"{package} {version} is for another torch than {TORCH}, which Baton needs: {INSTALL}"
    return None


def _check_logical_nc(wanted: int | None, environment: Mapping[str, str]) -> None:
    """The runtime and the compiler must group cores alike, or nothing that was compiled loads."""
    said = {"neuron.logical_nc": str(wanted)} if wanted is not None else {}
    if (runtime := environment.get(_LOGICAL_NC)) is not None:
        said[_LOGICAL_NC] = runtime
    if flag := re.search(r"--(?:lnc|logical-nc-config)[ =](\d+)", environment.get(_COMPILER_FLAGS, "")):
        said[_COMPILER_FLAGS] = flag[1]
    if len(set(said.values())) > 1:
        found = ", ".join(f"{source} says {value}" for source, value in said.items())
        raise StartError(f"device neuron: logical cores must be the same for all: {found}")


def settings_for_process(logical_nc: int | None, cache: Path | None) -> dict[str, str]:
    """The environment that the vendor's packages read at their import. No step may silently run on the CPU."""
    found = {"TORCH_NEURONX_DISABLE_FALLBACK_EXECUTION": "1"}
    if logical_nc is not None:
        found[_LOGICAL_NC] = str(logical_nc)
    if cache is not None:
        found["TORCH_NEURONX_NEFF_CACHE_DIR"] = str(cache)
    return found


_MEANINGS = (
    (
        r"wrong package",
        f"a package of the vendor's is a placeholder from PyPI; uninstall it, then {INSTALL}",
    ),
    (
        r"NeuronCore\(s\) not available|nrt_allocate_neuron_cores",
        "its cores are reserved by another process until that exits; `neuron-ls` shows which. Without Ray, "
        "NEURON_RT_VISIBLE_CORES chooses others",
    ),
    (
        r"NCC_EARG001|logical neuron ?core|NEURON_LOGICAL_NC_CONFIG|\blnc\b",
        "runtime and compiler group cores differently, or in a way that this chip has not: set neuron.logical_nc, and "
        "empty the compile cache",
    ),
    (
        r"no neuron device|/dev/neuron|nrt_init",
        "the driver (aws-neuronx-dkms) is missing, not loaded, or older than the runtime",
    ),
)


def meaning(error: BaseException) -> str | None:
    """What an error of the vendor's packages means to the person who starts a worker; None when that is not known."""
    text = str(error)
    return next((words for pattern, words in _MEANINGS if re.search(pattern, text, re.IGNORECASE)), None)
