"""A process of our own for as long as a context is open: started, waited for until it speaks, and ended."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from runtime.errors import StartError

_PATIENCE_S = 15.0


@contextmanager
def hosted(module: str, argument: object, *, start_s: float) -> Iterator[Any]:
    """Runs `python -m module JSON`; yields what it prints as its first line, parsed. It ends when its standard input
    does, and so also when this process dies.

    Raises `StartError` with the process's own last words when it ends first, or says nothing within `start_s`.
    """
    command = [sys.executable, "-m", module, json.dumps(argument)]
    with TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is ours to handle
        )
        assert process.stdout is not None
        overdue = threading.Timer(start_s, process.kill)
        overdue.start()
        try:
            line = process.stdout.readline()
            overdue.cancel()
            if not line:
                process.wait(_PATIENCE_S)
                raise StartError(f"{module} did not start: {_last_words(errors)}")
            yield json.loads(line)
        finally:
            overdue.cancel()
            _end(process)


def call(module: str, argument: object, *, timeout_s: float) -> Any:  # noqa: ANN401 - JSON
    """Runs `python -m module JSON` to its end and returns what it prints, parsed; raises `StartError` when it fails."""
    return _answer(module, [sys.executable, "-m", module, json.dumps(argument)], timeout_s)


def run_script(command: list[str], *, timeout_s: float) -> Any:  # noqa: ANN401 - JSON
    """Runs a command of another Python to its end and returns its last line, parsed; raises `StartError` too."""
    return _answer(Path(command[1]).name, command, timeout_s)


def _answer(name: str, command: list[str], timeout_s: float) -> Any:  # noqa: ANN401 - JSON
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=True)
    except OSError as error:
        raise StartError(f"{command[0]} cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise StartError(f"{name} did not end within {timeout_s:.0f} s") from error
    except subprocess.CalledProcessError as error:
        raise StartError(f"{name} failed: {(error.stderr.strip().splitlines() or ['no reason told'])[-1]}") from error
    return json.loads(done.stdout.strip().splitlines()[-1])


def _last_words(errors: IO[str]) -> str:
    errors.seek(0)
    return (errors.read().strip().splitlines() or ["no reason told"])[-1]


def _end(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    assert process.stdout is not None
    process.stdout.close()
