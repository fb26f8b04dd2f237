"""Which workers a configuration names."""

from runtime.config import Config, WorkerConfig
from runtime.ids import WorkerId


def planned_workers(config: Config) -> dict[WorkerId, WorkerConfig]:
    """The workers of a configuration, by name."""
    return {WorkerId(f"{worker.name}-{number}"): worker for worker in config.workers for number in range(worker.count)}
