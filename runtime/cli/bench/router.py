"""`baton bench router`: how long a placement takes in a large mesh, and what placing by cost is worth on a trace.

The trace is replayed in virtual time on simulated workers; what places there is what places in a gateway.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from runtime.cli.bench.report import Bound, Cell, Machine, Report, tell
from runtime.cli.bench.routing.deciding import TOKENS, Decided, decide
from runtime.cli.bench.routing.replay import (
    DECODE_WORKERS,
    ORACLE,
    PLACEMENTS,
    PREFILL_WORKERS,
    ROOM,
    VIEW_S,
    Outcome,
    Replay,
    stretched,
)
from runtime.cli.bench.routing.trace import BLOCK, Ask, made_trace, read_trace
from runtime.domain.routing import Placement
from runtime.errors import InvalidArgument, StartError

_WORKERS = 1000
_PAGES = 10_000_000
_STATED = 0.85
_UTILIZATIONS = (0.5, 0.7, _STATED)
_MADE = 3000
_WANTED = {
    "decide_ms_p99": Bound(1.0),
    "bytes_per_page_and_holder": Bound(40),
    "hit_vs_oracle": Bound(0.98, at_least=True),
    "ttft_vs_least_loaded": Bound(0.7),
}
_Outcomes = dict[tuple[float, str], Outcome]


def router(
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A trace as Mooncake publishes them; else one is made up.")
    ] = None,
    requests: Annotated[int | None, typer.Option(min=100, help="Replay so many of its requests; else all.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of everything; ends within a minute.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Time placements among 1,000 workers with 10 million pages, and replay a trace under each way of placing.

    Utilization is that of the prefill workers if nothing were cached; the figures of the replay are those at 85 %.
    """
    machine, share = Machine.here(), 10 if quick else 1
    asks = _asks(trace, requests or (1000 if quick else None))
    with Console(stderr=True).status("") as status:
        status.update("filling the directory, deciding")
        decided = decide(_WORKERS, _PAGES // share, 2000 // share)
        outcomes: _Outcomes = {}
        for utilization in (_STATED,) if quick else _UTILIZATIONS:
            paced = stretched(asks, utilization)
            for placement in PLACEMENTS:
                status.update(f"{len(asks):,} requests at {utilization:.0%}: {placement}")
                outcomes[utilization, placement] = Replay(placement).run(paced)
    tell(_report(machine, trace, asks, decided, outcomes), as_json=as_json)


def _asks(trace: Path | None, most: int | None) -> Sequence[Ask]:
    if trace is None:
        return made_trace(most or _MADE)
    try:
        return read_trace(trace, most)
    except InvalidArgument as error:
        raise StartError(str(error)) from error


def _report(machine: Machine, trace: Path | None, asks: Sequence[Ask], decided: Decided, outcomes: _Outcomes) -> Report:
    cost, least, oracle = (outcomes[_STATED, name] for name in (Placement.COST, Placement.LEAST_LOADED, ORACLE))
    ratios = {
        "decide_ms_p99": round(float(np.quantile(decided.decide_ms, 0.99)), 3),
        "decide_ms_p50": round(float(np.median(decided.decide_ms)), 3),
        "bytes_per_page_and_holder": round(decided.bytes_per_page, 1),
        "hit_vs_oracle": round(cost.hit / oracle.hit, 4) if oracle.hit else 1.0,
        "ttft_vs_least_loaded": round(cost.mean_ttft_ms / least.mean_ttft_ms, 4),
        "ttft_vs_round_robin": round(
            cost.mean_ttft_ms / outcomes[_STATED, Placement.ROUND_ROBIN].mean_ttft_ms, 4
        ),
    }  # fmt: skip
    tokens = sum(ask.tokens for ask in asks) / len(asks)
    remarks = (
        f"{len(asks):,} requests of {tokens:,.0f} tokens on average, {trace.name if trace else 'made up'}, on "
        f"{PREFILL_WORKERS} prefill and {DECODE_WORKERS} decode workers that cache {ROOM * BLOCK:,} tokens each; "
        f"views come every {VIEW_S} s.",
        "The oracle sees every cache as it is and takes whoever has most of the prompt, whatever his queue.",
        f"Decisions are for prompts of {TOKENS:,} tokens whose page ids are given; taking in a view of all workers "
        f"took {decided.view_ms:.0f} ms, filling the directory {decided.fill_s:.0f} s.",
    )
    return Report(
        "router", machine, tuple(_row(*key, each) for key, each in outcomes.items()), ratios, _WANTED, remarks
    )


def _row(utilization: float, placement: str, outcome: Outcome) -> dict[str, Cell]:
    return {
        "utilization": utilization,
        "placement": placement,
        "hit_share": round(outcome.hit, 4),
        "mean_ttft_ms": round(outcome.mean_ttft_ms, 1),
        "p90_ttft_ms": round(outcome.p90_ttft_ms, 1),
        "busy": round(outcome.busy, 3),
    }
