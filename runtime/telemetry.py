"""How a process of the mesh writes its log: one line an event, its ids as `key=value` at the end. Knows no event."""

import logging
import sys

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _Fields(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line, *trace = super().format(record).split("\n")
        fields = (f"{key}={value}" for key, value in vars(record).items() if key not in _STANDARD)
        return "\n".join([" ".join([line, *fields]), *trace])


def log_to_stderr(process: str) -> None:
    """Send the log of this process to stderr; `process` names it in every line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Fields(f"%(asctime)s {process} %(levelname)s %(message)s"))
    ours = logging.getLogger("runtime")
    for logger in (ours, logging.getLogger("actors")):
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
