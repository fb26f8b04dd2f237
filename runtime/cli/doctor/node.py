"""What the checks of `baton doctor` look at, and what they answer. Every check is a function from one to the other."""

import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from runtime.engine.neuron.preflight import Surroundings

_PATIENCE_S = 20


class Level(StrEnum):
    """`LOW` works and will hurt; `MISSING` is what nothing needs yet; `FAULT` keeps the named configuration from
    running here."""

    GOOD = "good"
    LOW = "low"
    MISSING = "missing"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Finding:
    """`remedy` says how to get what is missing, for a person at a shell."""

    area: str
    name: str
    level: Level
    found: str
    remedy: str = ""


def run_command(command: Sequence[str]) -> str | None:
    """What a program prints; None when there is no such program, or it fails."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ended.stdout if ended.returncode == 0 else None


def packaged_files(package: str) -> list[str]:
    """The files that an installed distribution brought; none when it is not installed."""
    try:
        return [str(file) for file in metadata.files(package) or ()]
    except metadata.PackageNotFoundError:
        return []


@dataclass(frozen=True, slots=True)
class Node:
    """A machine: its files, packages and environment, and the programs that can be run on it."""

    around: Surroundings = field(default_factory=Surroundings)
    run: Callable[[Sequence[str]], str | None] = run_command
    files: Callable[[str], list[str]] = packaged_files

    @property
    def root(self) -> Path:
        return self.around.root

    def text(self, path: str) -> str:
        """A file's content; empty when it cannot be read."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def names(self, folder: str) -> list[str]:
        """What lies in a folder; nothing when there is none."""
        place = self.root / folder
        return sorted(entry.name for entry in place.iterdir()) if place.is_dir() else []

    def memory_bytes(self, kind: str) -> int:
        """A line of /proc/meminfo, 0 when it is not there."""
        found = re.search(rf"^{kind}:\s+(\d+) kB", self.text("proc/meminfo"), re.MULTILINE)
        return int(found[1]) << 10 if found else 0

    def processors(self) -> int:
        return len(re.findall(r"^processor\s*:", self.text("proc/cpuinfo"), re.MULTILINE))
