"""Sessions and turns as the tests of the stores make them."""

from dataclasses import replace

from runtime.domain.sequence import Sampling
from runtime.domain.sessions import (
    MAIN,
    Asked,
    Ending,
    Item,
    Key,
    OnConflict,
    Place,
    Prepared,
    Session,
    Spent,
    StopReason,
    TurnEvent,
    TurnRecord,
    TurnStatus,
)
from runtime.ids import BootId, GatewayId, SessionId, TenantId, TurnId
from runtime.session_store import SessionStore
from runtime.store.sealing import KEY_BYTES, MasterKey

MASTER = MasterKey(bytes(range(KEY_BYTES)))
TENANT, OTHER = TenantId("tenant"), TenantId("other")
HERE, THERE = GatewayId("gw-here"), GatewayId("gw-there")
START = Place(0, 0)
ASKED = Asked((Item("user", "Hello."),), Sampling(max_tokens=9, temperature=0.5, seed=7), True, 60.0)
COMMITTED = Ending(
    TurnStatus.COMMITTED, StopReason.END_TURN, kept=2, spent=Spent(3, 1, 3), attempts=2, boot=BootId("boot-a")
)
OUTPUT = (7, 8, 2)
EVENTS = (TurnEvent(1, 0, (7,), "seven "), TurnEvent(2, 1, (8, 2), "eight"))


def key(name: str = "key", request: bytes = b"one") -> Key:
    return Key(name, request)


async def session(store: SessionStore, name: str = "sess-1", *, rerender: bool = False) -> SessionId:
    made = await store.create(Session(SessionId(name), TENANT, "model", 0, rerender, {"who": "Ünï"}), None)
    return made.id


def record(
    sess: SessionId,
    name: str = "turn-1",
    base: Place | None = START,
    *,
    prompt: tuple[int, ...] = (1, 2, 3),
    branch: str = MAIN,
    owner: GatewayId = HERE,
    context: int = 0,
    **asked: object,
) -> TurnRecord:
    prepared = None if base is None else Prepared(base, prompt, context, 9)
    wanted = replace(ASKED, **asked)  # type: ignore[arg-type]  # checked by the class itself
    return TurnRecord(TurnId(name), sess, TENANT, branch, "model", TurnStatus.RUNNING, 0, owner, wanted, prepared)


async def opened(store: SessionStore, turn: TurnRecord, under: Key | None = None) -> TurnRecord:
    """A turn that is new."""
    found = await store.open(turn, under)
    assert found is not None, "the branch has moved on"
    assert found[1], "the turn was there before"
    return found[0]


async def committed(store: SessionStore, turn: TurnRecord, ending: Ending = COMMITTED) -> TurnRecord:
    """Opened, and ended with `OUTPUT`."""
    running = await opened(store, turn)
    await store.finish(running, ending, OUTPUT, EVENTS)
    return running


def enqueued(turn: TurnRecord, policy: OnConflict = OnConflict.ENQUEUE) -> TurnRecord:
    return replace(turn, asked=replace(turn.asked, on_conflict=policy))


async def talked(store: SessionStore, turns: int) -> SessionId:
    """`turns` committed turns, whose prompts are their numbers."""
    sess = await session(store)
    for number in range(turns):
        base = (await store.context(TENANT, sess, MAIN)).branch
        await committed(store, record(sess, f"turn-{number}", base.place, prompt=(100 + number,), context=base.tokens))
    return sess
