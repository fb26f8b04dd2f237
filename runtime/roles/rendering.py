"""What a turn adds to its session's context, rendered alone. Never touches the store, and never renders again what was
committed (invariant 6), but where a session is one that asked for that, or a turn has other instructions than the last:
then its context is another one, and it says how much of the old it lost."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial

from runtime.domain.generation import Generation
from runtime.domain.sessions import Asked, Context, Item, Prepared, Session
from runtime.domain.spending import Reserve, first_slice
from runtime.errors import FailedPrecondition, InvalidArgument
from runtime.roles.gateway import GatewayRole, ServedModel

Offload = Callable[[Callable[[], Prepared]], Awaitable[Prepared]]
Ready = tuple[Prepared, Reserve]
"""A turn that may run, and what it wants to hold before it does."""


class Rendering:
    """Texts above `inline_chars` are rendered off the event loop."""

    def __init__(self, gateway: GatewayRole, inline_chars: int, offload: Offload) -> None:
        self._gateway = gateway
        self._inline_chars = inline_chars
        self._offload = offload

    def served(self, session: Session) -> ServedModel:
        """Raises `NotFound`, and `FailedPrecondition` when the session's tokens mean something else to it."""
        served = self._gateway.served(session.model)
        if not session.rerender and session.vocabulary != served.tokenizer.vocabulary:
            told = f"model {session.model!r} has another tokenizer than when the session was made"
            raise FailedPrecondition(f"{told}, so its tokens mean something else", field="session")
        return served

    async def prepare(self, context: Context, asked: Asked) -> Ready:
        """Render what is new and see that it fits; says what the turn wants to hold before it runs.

        Raises as `GatewayRole.check`, or what the template refuses."""
        work = partial(self._render, context, asked)
        size = sum(len(item.content) for item in (*asked.items, *context.items, *context.unrendered))
        prepared = work() if size <= self._inline_chars else await self._offload(work)
        past = context.tokens if prepared.context else ()
        sampling = replace(asked.sampling, max_tokens=prepared.max_tokens)
        tokens = (*past, *prepared.prompt)
        self._gateway.check(
            Generation(context.session.model, tokens, sampling, context.session.tenant, asked.deadline_s)
        )
        token_bytes = self.served(context.session).spec.token_bytes
        return prepared, Reserve(first_slice(len(tokens), prepared.max_tokens, token_bytes))

    def _render(self, context: Context, asked: Asked) -> Prepared:
        served = self.served(context.session)
        messages = [item.message for item in (*context.items, *context.unrendered, *asked.items)]
        if not messages:
            raise InvalidArgument("items must not be empty: there is nothing to answer", field="items")
        past, drift = len(context.tokens), 0
        if past and not context.anew(asked.instructions):
            prompt = served.tokenizer.render_delta([item.message for item in context.preamble], messages)
        else:
            first = () if asked.instructions is None else (Item("system", asked.instructions).message,)
            prompt = served.tokenizer.render_chat([*first, *messages])
            past, drift = 0, past - _common(context.tokens, prompt)
        room = served.spec.max_tokens - past - len(prompt)
        # At least 1, so that a conversation that fills the context is refused as that.
        max_tokens = asked.sampling.max_tokens if asked.max_tokens_given else max(room, 1)
        return Prepared(context.branch.place, tuple(prompt), past, max_tokens, drift)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many of the first tokens are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
