"""What a line of the log holds."""

import logging
from collections.abc import Iterator

import pytest

from runtime.telemetry import log_to_stderr


@pytest.fixture(autouse=True)
def _restored_loggers() -> Iterator[None]:
    yield
    for name in ("runtime", "actors"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.NOTSET)


def test_a_line_names_its_process_and_ends_with_the_ids(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr("decode-0")
    logging.getLogger("runtime.roles.controller").warning("worker lost", extra={"worker": "decode-1", "boot": "b-7"})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(" decode-0 WARNING worker lost worker=decode-1 boot=b-7")


def test_a_traceback_follows_the_ids(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr("decode-0")
    try:
        raise ValueError("broke")
    except ValueError:
        logging.getLogger("runtime.engine").exception("the engine failed", extra={"worker": "decode-0"})
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.endswith("the engine failed worker=decode-0")
    assert last == "ValueError: broke"


def test_others_loggers_stay_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr("decode-0")
    logging.getLogger("elsewhere").info("quiet")
    assert capsys.readouterr().err == ""
