"""Sessions that begin with something: the session and that in one transaction, so that neither is there alone."""

from dataclasses import replace

from runtime.domain.sessions import Key, Session, TurnRecord
from runtime.errors import FailedPrecondition
from runtime.store.adding import add_items
from runtime.store.looking import session_of
from runtime.store.opening import create, open_turn
from runtime.store.transaction import Transaction


async def create_saying(tx: Transaction, session: Session, said: TurnRecord | None, key: Key | None) -> Session:
    made = await create(tx, session, key)
    if said is None or made.id != session.id:
        return made
    await add_items(tx, said, None)
    return await session_of(tx, session.tenant, session.id)


async def open_alone(tx: Transaction, session: Session, turn: TurnRecord, key: Key | None) -> tuple[TurnRecord, bool]:
    made = await create(tx, session, key)
    opened = await open_turn(tx, replace(turn, session=made.id), key)
    if opened is None:
        told = "what was made under this key has gone on since"
        raise FailedPrecondition(told, field="idempotency_key")
    return opened
