"""A model that does not fit is refused with the arithmetic, before anything is loaded."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from runtime.domain.batching import Limits
from runtime.domain.spec import ModelSpec
from runtime.engine.memory import check_fits, free_bytes
from runtime.engine.native import NativeSettings, build_native
from runtime.errors import ModelError
from runtime.model.checkpoint import Checkpoint, open_checkpoint
from runtime.model.share import shares_of
from runtime.model.spec import checkpoint_spec

MIB = 1 << 20
PAGES = 1023


@pytest.fixture
def opened(checkpoint: Callable[[str], Path]) -> Checkpoint:
    return open_checkpoint(checkpoint("llama"))


@pytest.fixture
def spec(opened: Checkpoint) -> ModelSpec:
    return checkpoint_spec(opened, name="tiny", dtype="float32", page_tokens=32)


def taken(opened: Checkpoint, spec: ModelSpec) -> int:
    """As it is on the disk, which is float32 too."""
    return sum(tensor.size for tensor in opened.tensors.values()) + (PAGES + 1) * spec.page_bytes


def test_what_just_fits_is_reported(opened: Checkpoint, spec: ModelSpec, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "runtime.engine.memory")
    check_fits(opened, spec, PAGES, taken(opened, spec))
    (report,) = caplog.messages
    assert report.startswith("tiny takes 17 MiB of 17 MiB that are free: weights of 1 MiB in float32, and 16 MiB of KV")
    assert "1023 pages of 32 tokens, 16384 bytes each, which hold 32736 tokens" in report


def test_one_byte_too_little_is_refused_with_the_arithmetic(opened: Checkpoint, spec: ModelSpec) -> None:
    with pytest.raises(ModelError, match=r"does not fit: weights of 1 MiB .* Together 17 MiB, and 17 MiB are free"):
        check_fits(opened, spec, PAGES, taken(opened, spec) - 1)


def test_half_the_bytes_a_number_need_half_the_memory(opened: Checkpoint, spec: ModelSpec) -> None:
    check_fits(opened, replace(spec, dtype="bfloat16"), PAGES, taken(opened, spec) // 2)


@pytest.mark.parametrize(("kind", "copies"), [("llama", 1), ("llama-linear-mqa", 2)])
def test_ranks_are_counted_each(
    kind: str, copies: int, checkpoint: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "runtime.engine.memory")
    opened = open_checkpoint(checkpoint(kind))
    spec, shares = checkpoint_spec(opened, name="tiny", dtype="float32", page_tokens=32), shares_of(opened, 2)
    needed = (PAGES + 1) * spec.page_bytes * copies
    for name, tensor in opened.tensors.items():
        of_keys = "k_proj" in name or "v_proj" in name
        held = 2 if shares[0].part(tensor) is None else copies if of_keys else 1
        needed += held * tensor.size
    check_fits(opened, spec, PAGES, needed, shares)
    assert "each of 2 ranks takes weights of 1 MiB in float32, and " in caplog.messages[0]
    assert f"{PAGES} pages of 32 tokens, {spec.page_bytes * copies // 2} bytes each" in caplog.messages[0]
    with pytest.raises(ModelError, match=r"does not fit: each of 2 ranks takes .* Together \d+ MiB"):
        check_fits(opened, spec, PAGES, needed - 1, shares)


def test_an_engine_without_room_is_not_built(opened: Checkpoint) -> None:
    settings = NativeSettings("tiny", opened.path, "float32", page_tokens=32, threads=1)
    with pytest.raises(ModelError, match="tiny does not fit"):
        build_native(settings, Limits(32, 4), lambda page_bytes: psutil.virtual_memory().total // page_bytes)


@pytest.mark.parametrize(("limit", "free"), [("1000", 700), ("500", 200), ("100", 0)])
def test_a_control_group_bounds_what_is_free(tmp_path: Path, limit: str, free: int) -> None:
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text("400\n")
    (tmp_path / "memory.stat").write_text("anon 300\ninactive_file 100\n")
    assert free_bytes(tmp_path) == free


def test_without_a_bound_the_machine_is_what_there_is(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) > MIB
    for file, content in (("memory.max", "max"), ("memory.current", "400"), ("memory.stat", "anon 300")):
        (tmp_path / file).write_text(content)
    assert free_bytes(tmp_path) > MIB
