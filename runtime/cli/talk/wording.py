"""What happened for an answer, in words: where its KV came from, and how fast its tokens came."""

from runtime.cli.talk.asking import Reply
from runtime.domain.messages import Handoff


def kv_in_words(handoff: Handoff) -> list[str]:
    """Who computed the prompt's KV and what moved: a phrase for each part of it."""
    told = []
    brought = handoff.loaded_tokens + handoff.restored_tokens + handoff.moved_tokens
    here = handoff.prompt_tokens - handoff.cached_tokens - brought
    if handoff.moved_tokens:
        cached = f", {handoff.prefill_cached_tokens:,} cached there" if handoff.prefill_cached_tokens else ""
        size = bytes_in_words(handoff.moved_bytes)
        told.append(f"{handoff.prefill_worker} prefilled {handoff.moved_tokens:,} tokens{cached}")
        told.append(
            f"{handoff.moved_pages:,} pages, {size}, moved by {handoff.transport} in {handoff.transfer_ms:.1f} ms, "
            f"{handoff.exposed_ms:.1f} ms of waiting after the prefill"
        )
    elif handoff.prefill_worker is not None:
        told.append(f"{handoff.prefill_worker} was asked, but none of its pages arrived")
    if handoff.cached_tokens:
        told.append(f"{handoff.cached_tokens:,} tokens from the decode worker's prefix cache")
    told += _brought_in_words(handoff)
    if here == 1:
        told.append("the last token by the decode worker, as its first step")
    elif here > 0:
        told.append(f"{here:,} tokens prefilled by the decode worker")
    return told


def _brought_in_words(handoff: Handoff) -> list[str]:
    restored = f"restored from {handoff.holder} in {handoff.restore_ms:.1f} ms"
    places = (
        (handoff.host_tokens, "loaded from host memory"),
        (handoff.cold_tokens, "loaded from the cold tier"),
        (handoff.restored_tokens, restored),
    )
    return [f"{tokens:,} tokens {place}" for tokens, place in places if tokens]


def speed_in_words(reply: Reply) -> str:
    told = [f"TTFT {reply.first_s * 1000:.0f} ms"]
    if reply.step_s is not None:
        told.append(f"ITL {reply.step_s * 1000:.1f} ms")
    told.append(f"{reply.tokens_per_s:.0f} tokens/s, {reply.tokens} tokens")
    if reply.attempts > 1:
        told.append(f"moved to another decode worker {reply.attempts - 1}x on the way")
    return ", ".join(told)


def bytes_in_words(count: int) -> str:
    size, unit = float(count), "B"
    for bigger in ("KiB", "MiB", "GiB"):
        if size < 1024:
            break
        size, unit = size / 1024, bigger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
