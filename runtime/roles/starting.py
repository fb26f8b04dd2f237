"""How a stored turn becomes one that runs here: what is generated for it, and what its table must know of its model."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from runtime.domain.generation import Claim, Generation
from runtime.domain.retention import NO_RETENTION
from runtime.domain.reuse import Past
from runtime.domain.sessions import Context, TurnEvent, TurnRecord
from runtime.roles.calls import calls_of
from runtime.roles.committing import kept_tokens
from runtime.roles.gateway import ServedModel
from runtime.roles.session_turn import RunningTurn

if TYPE_CHECKING:
    from runtime.roles.sessions import SessionRole


def start(
    role: "SessionRole",
    served: ServedModel,
    record: TurnRecord,
    persisted: Sequence[TurnEvent],
    context: Context,
) -> RunningTurn:
    """`persisted` are the events of an earlier owner, `context` is what the branch said before the turn."""
    prepared, spec = record.prepared, served.spec
    assert prepared is not None, "a running turn was prepared"
    past = context.tokens if prepared.context else ()
    given = tuple(token for event in persisted for token in event.tokens)
    generation = Generation(
        record.model,
        (*past, *prepared.prompt),
        replace(record.asked.sampling, max_tokens=prepared.max_tokens),
        record.tenant,
        record.asked.deadline_s,
        claim=Claim(
            record.id,
            record.epoch,
            given,
            context.boot,
            record.session,
            record.asked.retention or NO_RETENTION,
        ),
    )
    sampling = generation.sampling
    enders = frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else served.tokenizer.eos_ids)

    def kept(tokens: Sequence[int], text: str, stopped: bool) -> int:
        return kept_tokens(tokens, text, enders, served.tokenizer.decoder) if stopped else len(tokens)

    calls = partial(calls_of, served.tokenizer, record.asked.toolbox, record.id)
    before = Past(
        len(context.tokens),
        prepared.drift,
        context.boot,
        context.fingerprint,
        spec.kv_fingerprint,
        spec.page_tokens,
    )
    return RunningTurn(role, record, persisted, generation, kept, calls, spec.token_bytes, before)
