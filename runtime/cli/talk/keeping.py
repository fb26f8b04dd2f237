"""How a session is kept, what it may spend and what it has spent, in words."""

from datetime import timedelta

from rich.table import Table

from runtime.domain.retention import Holding, Pause
from runtime.domain.sessions import Policies
from runtime.domain.spending import Account, Amounts, Measure

_AFTER = {Pause.TOOLS: "calls of tools", Pause.ANSWER: "an answer"}


def tokens_spent(used: Amounts) -> int:
    return used.prompt_tokens + used.cached_tokens + used.completion_tokens


def expiry_in_words(account: Account) -> str:
    if account.expires_in_ms is None:
        return "never"
    return f"in {timedelta(seconds=account.expires_in_ms // 1000)}"


def policies_in_words(policies: Policies) -> str:
    """What its turns do that do not say themselves."""
    words = f"on_conflict {policies.on_conflict}, on_disconnect {'cancel' if policies.cancel_unwatched else 'continue'}"
    if not policies.retention:
        return words
    tools, answer = (f"{milliseconds / 1000:g} s" for milliseconds in policies.retention.each)
    return f"{words}, KV asked to be kept {tools} after calls of tools and {answer} after answers"


def holding_in_words(holding: Holding | None) -> str:
    """What is kept of a branch's KV."""
    if holding is None:
        return ""
    left = timedelta(seconds=holding.remaining_ms // 1000)
    return f"{holding.tokens:,} tokens in the {holding.kept_in} for {left} more, after {_AFTER[holding.pause]}"


def spending_table(account: Account) -> Table:
    """A row for each measure: spent, held by turns that run, and the limit, if there is one."""
    table = Table("", "spent", "reserved", "limit", box=None)
    each = zip(Measure, account.used.each, account.held.each, account.limits.each, strict=True)
    for measure, used, held, limit in each:
        table.add_row(measure, f"{used:,}", f"{held:,}", "" if limit is None else f"{limit:,}")
    return table
