"""What the supervisor tells arrives as it was told."""

import io
import os

from actors.events import Event, Failed, News, Ready, Step, Stopped, Teller, read_events
from tests.actors.test_state import record

EVENTS: list[Event] = [
    Step(part="ray", detail="starting"),
    Ready(record=record(ready=True)),
    News(text="decode-0 died"),
    Failed(message="gateway.http_port: port 8000 is taken\nby another"),
    Stopped(),
]


def test_every_event_is_read_as_it_was_told() -> None:
    reading, writing = os.pipe()
    teller = Teller(writing)
    for event in EVENTS:
        teller.tell(event)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert list(read_events(pipe)) == EVENTS


def test_a_line_cut_short_by_a_kill_is_left_out() -> None:
    whole = News(text="here").model_dump_json()
    assert list(read_events(io.StringIO(f'{whole}\n{{"kind": "ne'))) == [News(text="here")]


def test_a_supervisor_goes_on_when_nobody_listens_any_more() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    teller = Teller(writing)
    teller.tell(Stopped())
    os.close(writing)
    teller.tell(Stopped())
