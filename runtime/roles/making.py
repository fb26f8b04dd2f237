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
from runtime.domain.spending import Account
from runtime.errors import FailedPrecondition, InvalidArgument
from runtime.ids import GatewayId, SessionId, TenantId, TurnId
from runtime.roles.gateway import ServedModel
from runtime.roles.rendering import Ready

# As long as OpenAI keeps a response.
_ALONE_TTL_MS = 30 * 24 * 3600 * 1000


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


def hidden_session(ident: SessionId, tenant: TenantId, served: ServedModel, *, tools: bool = False) -> Session:
    """Of a response that asked for none; it renders anew where the model cannot do without, with `tools` or always. It
    goes when nobody went on from any of its responses for 30 days."""
    tokenizer, account = served.tokenizer, Account(ttl_ms=_ALONE_TTL_MS)
    anew = tokenizer.no_deltas() is not None or (tools and tokenizer.no_results() is not None)
    vocabulary = tokenizer.vocabulary
    return Session(ident, tenant, served.spec.name, 0, anew, vocabulary=vocabulary, account=account, hidden=True)


def beginning(session: Session) -> Context:
    """What was said in it before its first turn."""
    return Context(session, Branch(MAIN, Place(0, 0), None, 0, 0, None), ())


def to_run(ident: TurnId, session: Session, branch: str, asked: Asked, ready: Ready, owner: GatewayId) -> TurnRecord:
    """A turn that is to run at once, if its branch is free."""
    prepared, reserve = ready
    whose, runs = session.tenant, TurnStatus.RUNNING
    return TurnRecord(ident, session.id, whose, branch, session.model, runs, 0, owner, asked, prepared, reserve=reserve)


def unanswered(
    ident: TurnId, tenant: TenantId, session: SessionId, branch: str, items: tuple[Item, ...], owner: GatewayId
) -> TurnRecord:
    """A turn that only says something. Raises `InvalidArgument` naming `items` when it says nothing."""
    if not items:
        raise InvalidArgument("items must not be empty", field="items")
    ended = Ending(TurnStatus.COMMITTED, StopReason.END_TURN)
    asked = Asked(items, Sampling(1), False, 0.0)
    return TurnRecord(ident, session, tenant, branch, "", TurnStatus.COMMITTED, 0, owner, asked, ending=ended)
