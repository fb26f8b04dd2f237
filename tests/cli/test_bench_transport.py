"""The transport bench: that every path really moves pages, and what its ratios are of."""

import json

import pytest
from typer.testing import CliRunner

from runtime.cli.app import app
from runtime.cli.bench import transport
from runtime.cli.bench.transport import _Pace, _ratios, _Timing


def test_ratios_are_medians_of_rounds() -> None:
    timings = {
        "memcpy": [_Timing(1.0, 1.0), _Timing(2.0, 2.0), _Timing(1.0, 1.0)],
        "shm_unverified": [_Timing(2.0, 1.0), _Timing(2.0, 1.0), _Timing(1.0, 1.0)],
        "shm": [_Timing(4.0, 1.0), _Timing(4.0, 1.0), _Timing(4.0, 1.0)],
        "grpc_raw": [_Timing(3.0, 1.0)] * 3,
        "grpc": [_Timing(6.0, 1.0)] * 3,
    }
    assert _ratios(timings) == {"shm_vs_memcpy": 1.0, "shm_verified_vs_memcpy": 0.25, "grpc_vs_raw": 0.5}


def test_it_times_every_path_beside_what_the_same_bytes_cost_bare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_QUICK", _Pace(pages_kib=(1024,), mib=16, rounds=1))
    result = CliRunner().invoke(app, ["bench", "transport", "--quick", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [row["path"] for row in report["rows"]] == [
        "memcpy", "tcp", "grpc_raw", "grpc", "shm_unverified", "shm", "nixl_raw", "nixl",
    ]  # fmt: skip
    assert all(row["gb_per_s"] > 0 for row in report["rows"])
    assert report["ratios"].keys() == {"shm_vs_memcpy", "shm_verified_vs_memcpy", "grpc_vs_raw", "nixl_vs_raw"}
