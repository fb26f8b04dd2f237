"""A closed loop: so many clients, each sending its next request when the last is answered, for so many seconds.

Runs as a process of its own (`python -m runtime.cli.bench.load.closed JSON`), so that what it measures is not itself;
prints what it measured as JSON.
"""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import uvloop

from runtime.cli.bench.load.caller import Answer, Caller
from runtime.cli.bench.load.grpc import GrpcCaller
from runtime.cli.bench.load.http import HttpCaller
from runtime.errors import BatonError

_TRIES_APART_S = 0.05


@dataclass(frozen=True, slots=True)
class Plan:
    """`target` is a URL for `http` and host:port for `grpc`; requests are counted after `warmup_s`, for `seconds`."""

    protocol: str
    target: str
    model: str
    clients: int
    tokens: int
    warmup_s: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What was answered within the counted time; the first failure says what the failures were."""

    requests: int
    events: int
    seconds: float
    first_ms_p50: float
    first_ms_p99: float
    whole_ms_p50: float
    failures: int = 0
    failure: str = ""


@dataclass(slots=True)
class _Tally:
    answers: list[Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


async def run(plan: Plan) -> Measured:
    """Raises `Unavailable` when nobody is there at all."""
    callers = [await _connect(plan) for _ in range(plan.clients)]
    tally = _Tally()
    begins = time.perf_counter() + plan.warmup_s
    try:
        async with asyncio.timeout(plan.warmup_s + plan.seconds) as limit:
            async with asyncio.TaskGroup() as group:
                for number, caller in enumerate(callers):
                    group.create_task(_client(number, caller, begins, tally))
    except TimeoutError:
        if not limit.expired():
            raise
    finally:
        for caller in callers:
            await caller.close()
    return _measured(tally, plan.seconds)


async def _connect(plan: Plan) -> Caller:
    kinds: dict[str, type[HttpCaller] | type[GrpcCaller]] = {"http": HttpCaller, "grpc": GrpcCaller}
    return await kinds[plan.protocol].connect(plan.target, plan.model, plan.tokens)


async def _client(number: int, caller: Caller, begins: float, tally: _Tally) -> None:
    count = 0
    while True:
        count += 1
        try:
            answer = await caller.call(f"Request {count} of client {number}: say something.")
        except BatonError as error:
            tally.failures.append(error.message)
            await asyncio.sleep(_TRIES_APART_S)
        else:
            if time.perf_counter() >= begins:
                tally.answers.append(answer)


def _measured(tally: _Tally, seconds: float) -> Measured:
    first = [answer.first_s * 1000 for answer in tally.answers]
    return Measured(
        requests=len(tally.answers),
        events=sum(answer.events for answer in tally.answers),
        seconds=seconds,
        first_ms_p50=_percentile(first, 50),
        first_ms_p99=_percentile(first, 99),
        whole_ms_p50=_percentile([answer.whole_s * 1000 for answer in tally.answers], 50),
        failures=len(tally.failures),
        failure=tally.failures[0] if tally.failures else "",
    )


def _percentile(values: Sequence[float], percent: int) -> float:
    if len(values) < 2:
        return values[0] if values else 0.0
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def main() -> None:
    plan = Plan(**json.loads(sys.argv[1]))
    measured = uvloop.run(run(plan))
    sys.stdout.write(json.dumps(asdict(measured)))


if __name__ == "__main__":
    main()
