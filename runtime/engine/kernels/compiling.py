"""The C sources beside this file, compiled for the processor that they are going to run on. Knows no tensors.

Compiled once for each machine and kept in the user's cache; a machine without a C compiler does without.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

_log = logging.getLogger(__name__)
_SOURCES = Path(__file__).parent
_FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
_LIMIT_S = 120.0
_FOR_US_ALONE = 0o700


def compiler() -> str | None:
    """The C compiler of this machine."""
    return shutil.which("cc") or shutil.which("gcc")


@cache
def compiled() -> ctypes.CDLL | None:
    """The library; None, and why in the log, where it cannot be made."""
    found = compiler()
    if found is None:
        _log.info("this machine has no C compiler: the engine runs slower without its own kernels")
        return None
    try:
        return ctypes.CDLL(str(_made(found)))
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().splitlines()[:1]
        _log.warning("%s does not compile the engine's kernels, which runs slower without: %s", found, reason)
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        _log.warning("the engine's kernels are not there, so that it runs slower: %s", error)
    return None


def _made(found: str) -> Path:
    sources = sorted(_SOURCES.glob("*.c"))
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "baton"
    library = folder / f"kernels-{_identity(found)}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True, mode=_FOR_US_ALONE)
    with TemporaryDirectory(dir=folder) as unfinished:
        made = Path(unfinished, "kernels.so")
        command = [found, *_FLAGS, *map(str, sources), "-o", str(made), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_LIMIT_S)
        made.rename(library)
    return library


def _identity(found: str) -> str:
    """Of the sources, of what compiles them, and of the processor, which others may share the folder with."""
    version = subprocess.run([found, "--version"], check=True, capture_output=True, text=True, timeout=_LIMIT_S).stdout
    parts = [version, platform.machine(), _abilities(), *_FLAGS]
    parts += [path.read_text() for path in sorted(_SOURCES.glob("*.[ch]"))]
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()


def _abilities() -> str:
    """What the processor says that it can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
