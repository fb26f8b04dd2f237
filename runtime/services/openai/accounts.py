"""What `baton` objects say beyond OpenAI's shape of a session: what a turn of it took and found, what it may spend."""

from dataclasses import asdict
from typing import Any

from runtime.domain.sessions import Ending
from runtime.domain.spending import Account

Json = dict[str, Any]


def spent_of(ending: Ending) -> Json:
    """`sources`: tokens of the prompt by where their KV is from (the fields of runtime.domain.reuse.Sources), and why
    some that the branch had before were computed again; `took`: what is spent of the session's limits, `limit` the one
    that ended the turn; `drift_tokens`: committed tokens that a rendering anew did not repeat."""
    return {
        "drift_tokens": ending.drift,
        "sources": None if ending.sources is None else asdict(ending.sources),
        "took": asdict(ending.took),
        "limit": ending.limit,
    }


def baton_of(ending: Ending) -> Json:
    handoff = None if ending.handoff is None else asdict(ending.handoff)
    return {"attempts": ending.attempts, "handoff": handoff, **spent_of(ending)}


def budget_of(account: Account) -> Json:
    """A limit that is null is none. `held` is what turns that run have in reserve."""
    told = {name: asdict(getattr(account, name)) for name in ("limits", "used", "held")}
    return {**told, "ttl_ms": account.ttl_ms, "expires_in_ms": account.expires_in_ms}
