"""Whether the pages of a worker's engine are what a ticket asks for. Refuses by the name of the field."""

from runtime.domain.messages import Ticket
from runtime.domain.spec import ModelSpec
from runtime.errors import Incompatible, InvalidArgument


def check_form(spec: ModelSpec, ticket: Ticket, groups: int) -> None:
    """Raises what this worker's pages, which travel in parts of so many `groups` of layers, cannot be made into."""
    if ticket.fingerprint != spec.kv_fingerprint:
        raise Incompatible("the ticket asks for the pages of another model", field="ticket.fingerprint")
    if not ticket.pages:
        raise InvalidArgument("the ticket names no page", field="ticket.pages")
    if not ticket.takes(spec.dtype):
        taken = " and ".join((ticket.dtype, *ticket.dtypes))
        raise Incompatible(
            f"the ticket takes pages computed in {taken} alone, and these are in {spec.dtype}", field="ticket.dtype"
        )
    if groups > 1 and not ticket.parts:
        raise Incompatible(
            f"a page has {groups} groups of layers here, and the receiver joins no parts",
            field="ticket.parts",
        )
