"""What all tests share: examples drawn without a clock, since a busy machine is no reason to fail; logs and arithmetic
left alone."""

import logging
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("baton", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("baton")


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """A test that sets up the log of a process leaves it to no other."""
    loggers = [logging.getLogger(name) for name in ("runtime", "actors")]
    before = [(logger, logger.handlers, logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers, logger.level, logger.propagate = handlers, level, propagate


@pytest.fixture(autouse=True)
def denormals_as_they_were() -> Iterator[None]:
    """An engine that was built on this thread has turned them off, and strategies for floats need them."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
