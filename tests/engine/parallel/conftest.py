"""Engine cores of several ranks, ended when the test is."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from runtime.engine.core import EngineCore
from tests.engine.parallel.groups import GroupCore, core_of, group_of


@pytest.fixture
def shared(checkpoint: Callable[[str], Path]) -> Iterator[GroupCore]:
    """Builds an engine core whose model `ranks` threads share."""
    with ExitStack() as stack:

        def build(kind: str = "llama", ranks: int = 2, pages: int = 600, step_tokens: int = 96) -> EngineCore:
            path = checkpoint(kind)
            core = core_of(group_of(path, ranks, pages=pages), path, pages=pages, step_tokens=step_tokens)
            stack.callback(core.close)
            return core

        yield build
