"""Responses and conversations by the names of OpenAI's API. One that is unknown is as unknown as another tenant's."""

from runtime.domain.sessions import Session, TurnRecord
from runtime.errors import NotFound
from runtime.ids import TenantId
from runtime.roles.sessions import SessionRole
from runtime.services.openai.responses.ids import no_conversation, no_response, session_named, turn_named


async def response_named(sessions: SessionRole, tenant: TenantId, ident: str, field: str) -> TurnRecord:
    try:
        return await sessions.store.turn(tenant, turn_named(ident, field))
    except NotFound as error:
        raise no_response(field) from error


async def conversation_named(sessions: SessionRole, tenant: TenantId, ident: str, field: str) -> Session:
    """A session that was made for a response is no conversation."""
    try:
        found, _ = await sessions.store.get(tenant, session_named(ident, field))
    except NotFound as error:
        raise no_conversation(field) from error
    if found.hidden:
        raise no_conversation(field)
    return found
