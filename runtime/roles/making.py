"""Sessions and turns as they are when nobody has stored them yet. Never talks to a store."""

from collections.abc import Mapping

from runtime.domain.sequence import Sampling
from runtime.domain.sessions import (
    MAIN,
    Asked,
    Branch,
    Context,
    Ending,
    Item,
    Place,
    Session,
    StopReason,
    TurnRecord,
    TurnStatus,
    check_metadata,
)
from runtime.errors import FailedPrecondition, InvalidArgument
from runtime.ids import GatewayId, SessionId, TenantId, TurnId
from runtime.roles.gateway import ServedModel


def fresh_session(
    ident: SessionId, tenant: TenantId, served: ServedModel, metadata: Mapping[str, str], *, rerender: bool
) -> Session:
    """Raises `FailedPrecondition` naming `rerender` where the model cannot do without."""
    check_metadata(metadata)
    why = served.tokenizer.no_deltas()
    if why is not None and not rerender:
        told = f"model {served.spec.name!r} has no rendering of what is new alone: {why}; ask with rerender"
        raise FailedPrecondition(told, field="rerender")
    return Session(ident, tenant, served.spec.name, 0, rerender, metadata, served.tokenizer.vocabulary)


def hidden_session(ident: SessionId, tenant: TenantId, served: ServedModel) -> Session:
    """Of a response that asked for none; it renders anew where the model cannot do without."""
    tokenizer = served.tokenizer
    anew = tokenizer.no_deltas() is not None
    return Session(ident, tenant, served.spec.name, 0, anew, vocabulary=tokenizer.vocabulary, hidden=True)


def beginning(session: Session) -> Context:
    """What was said in it before its first turn."""
    return Context(session, Branch(MAIN, Place(0, 0), None, 0, 0, None), ())


def unanswered(
    ident: TurnId, tenant: TenantId, session: SessionId, branch: str, items: tuple[Item, ...], owner: GatewayId
) -> TurnRecord:
    """A turn that only says something. Raises `InvalidArgument` naming `items` when it says nothing."""
    if not items:
        raise InvalidArgument("items must not be empty", field="items")
    ended = Ending(TurnStatus.COMMITTED, StopReason.END_TURN)
    asked = Asked(items, Sampling(1), False, 0.0)
    return TurnRecord(ident, session, tenant, branch, "", TurnStatus.COMMITTED, 0, owner, asked, ending=ended)
