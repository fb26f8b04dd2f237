"""What a turn adds to its session's context, rendered alone. Never touches the store, and never renders again what was
committed (invariant 6), but where a session is one that asked for that, or a turn has other instructions than the last:
then its context is another one, and it says how much of the old it lost."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial

from runtime.domain.generation import Generation
from runtime.domain.retention import NO_RETENTION
from runtime.domain.sessions import Asked, Context, Item, Prepared, Session
from runtime.domain.settling import settled
from runtime.domain.spending import Reserve, first_slice
from runtime.domain.tools import check_toolbox
from runtime.errors import FailedPrecondition, InvalidArgument
from runtime.ports import Tokenizer
from runtime.roles.calls import equipped
from runtime.roles.gateway import GatewayRole, ServedModel

Message = dict[str, object]

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
        texts = (*context.preamble, *asked.items, *context.items, *context.unrendered)
        size = sum(len(item.content) for item in texts) + len(asked.instructions or "")
        prepared = work() if size <= self._inline_chars else await self._offload(work)
        past = context.tokens if prepared.context else ()
        asked = prepared.asked or asked
        sampling = replace(asked.sampling, max_tokens=prepared.max_tokens)
        tokens = (*past, *prepared.prompt)
        self._gateway.check(
            Generation(context.session.model, tokens, sampling, context.session.tenant, asked.deadline_s)
        )
        token_bytes = self.served(context.session).spec.token_bytes
        keep_ms = (asked.retention or NO_RETENTION).longest_ms
        return prepared, Reserve(first_slice(len(tokens), prepared.max_tokens, token_bytes, keep_ms))

    def _render(self, context: Context, asked: Asked) -> Prepared:
        served = self.served(context.session)
        asked = completed(context, asked, served.tokenizer)
        messages = [item.message for item in (*context.items, *context.unrendered, *asked.items)]
        if not messages or (not asked.items and context.items and context.items[-1].role == "assistant"):
            raise InvalidArgument("items must not be empty: there is nothing to answer", field="items")
        tools = [tool.for_template for tool in asked.toolbox.tools]
        past, drift = len(context.tokens), 0
        if past and not context.anew(asked.instructions):
            prompt = _delta(context, messages, tools, served.tokenizer)
        else:
            first = () if asked.instructions is None else (Item("system", asked.instructions).message,)
            prompt = served.tokenizer.render_chat([*first, *messages], tools)
            past, drift = 0, past - _common(context.tokens, prompt)
        room = served.spec.max_tokens - past - len(prompt)
        # At least 1, so that a conversation that fills the context is refused as that.
        max_tokens = asked.sampling.max_tokens if asked.max_tokens_given else max(room, 1)
        known = sum(not pending.open for pending in context.calls)
        return Prepared(context.branch.place, tuple(prompt), past, max_tokens, drift, known, asked)


def completed(context: Context, asked: Asked, tokenizer: Tokenizer) -> Asked:
    """With what became of the calls of the turn before, its tools if none are named, and what makes the answer call as
    asked. Raises `FailedPrecondition` naming `items` while a call is open, and what tools are refused with."""
    toolbox, before = asked.toolbox, context.toolbox
    if before.tools and not toolbox.tools:
        wait_ms, approval_ms = toolbox.wait_ms or before.wait_ms, toolbox.approval_ms or before.approval_ms
        toolbox = replace(toolbox, tools=before.tools, wait_ms=wait_ms, approval_ms=approval_ms)
    check_toolbox(toolbox)
    sampling = equipped(asked.sampling, toolbox, tokenizer)
    if toolbox.tools and not context.session.rerender and (why := tokenizer.no_results()) is not None:
        told = f"model {context.session.model!r} has no rendering of what tools bring alone: {why}; ask with rerender"
        raise FailedPrecondition(told, field="tools")
    items = settled(context.calls, asked.items)
    return replace(asked, items=items, toolbox=toolbox, sampling=sampling)


def _delta(context: Context, messages: list[Message], tools: list[Message], tokenizer: Tokenizer) -> list[int]:
    """Raises `FailedPrecondition` naming `tools` when the model would not be told of them."""
    preamble = [item.message for item in context.preamble]
    prompt = tokenizer.render_delta(preamble, messages, tools)
    before = [tool.for_template for tool in context.toolbox.tools]
    if tools != before and prompt == tokenizer.render_delta(preamble, messages, before):
        told = "tools differ from those before, and the chat template tells them at a conversation's beginning only"
        raise FailedPrecondition(f"{told}: begin another session, or one with rerender", field="tools")
    return prompt


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many of the first tokens are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
