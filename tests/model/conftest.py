"""The checkpoints that the tests of this folder share."""

from pathlib import Path

import pytest

from runtime.model.synthetic import make_llama


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama checkpoint that no test may change."""
    path = tmp_path_factory.mktemp("checkpoints") / "llama"
    make_llama(path)
    return path
