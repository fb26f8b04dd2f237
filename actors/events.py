"""What a supervisor tells whoever started it: one JSON object a line, until that one stops reading."""

import os
from collections.abc import Iterator
from typing import IO, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from actors.state import Record


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True)


class Step(_Event):
    """How far one of the parts is that start side by side."""

    kind: Literal["step"] = "step"
    part: Literal["ray", "workers", "gateway"]
    detail: str
    done: bool = False


class Ready(_Event):
    kind: Literal["ready"] = "ready"
    record: Record


class News(_Event):
    """Something happened to a mesh that serves."""

    kind: Literal["news"] = "news"
    text: str


class Failed(_Event):
    """The mesh did not start or cannot go on. Told after everything was cleared away; nothing follows."""

    kind: Literal["failed"] = "failed"
    message: str


class Stopped(_Event):
    """The mesh was stopped as asked and nothing is left of it; nothing follows."""

    kind: Literal["stopped"] = "stopped"


Event = Step | Ready | News | Failed | Stopped
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


class Teller:
    """The supervisor's end, a pipe. Nobody has to listen."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def tell(self, event: Event) -> None:
        if self._descriptor is None:
            return
        try:
            os.write(self._descriptor, f"{event.model_dump_json()}\n".encode())
        except BrokenPipeError:
            self._descriptor = None


def read_events(source: IO[str]) -> Iterator[Event]:
    """All events until the supervisor ends; a line that it was killed in the middle of is left out."""
    for line in source:
        if line.endswith("\n"):
            yield _EVENT.validate_json(line)
