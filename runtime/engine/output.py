"""The text of one sequence as it may be shown, and its end. A pure function of the tokens pushed; never samples.

Text that could be the beginning of a stop string is held back until it cannot, so replaying the first n tokens of an
answer on another worker gives exactly the text that the first worker showed after them.
"""

from runtime.domain.sequence import FinishReason, Sampling
from runtime.ports import TextDecoder


class StopMatcher:
    """Cuts text before the stop string that is completed first; when two end together, before the longer one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string was completed (nothing follows then)."""
        if not self._stops:
            return text, False
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        kept = self._possible_beginning(text)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept], False

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held

    def _possible_beginning(self, text: str) -> int:
        """How many characters at the end of `text` are a proper beginning of a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            end = text[-size:]
            if any(stop.startswith(end) for stop in self._stops):
                return size
        return 0


def enders(sampling: Sampling, eos_ids: frozenset[int]) -> frozenset[int]:
    """The tokens that end a sequence."""
    return frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else eos_ids)


class OutputStream:
    """Feed it every output token, sampled and forced alike; `finish` is set by the push that ends the sequence.

    Before `min_tokens` neither a token nor a stop string ends it; the text of these tokens is shown as it comes.
    """

    def __init__(self, sampling: Sampling, eos_ids: frozenset[int], decoder: TextDecoder) -> None:
        self.finish: FinishReason | None = None
        self._left = sampling.max_tokens
        self._bound = sampling.min_tokens
        self._enders = enders(sampling, eos_ids)
        self._decoder = decoder
        self._matcher = StopMatcher(sampling.stop)

    def push(self, token: int) -> str:
        """The text that may be shown now. A token that ends the sequence by its id has no text of its own."""
        assert self.finish is None, "a token was pushed after the end"
        self._left -= 1
        if self._bound > 0:
            self._bound -= 1
            text = self._decoder.push(token)
            return self._end(text, FinishReason.LENGTH) if self._left == 0 else text
        if token in self._enders:
            return self._end("", FinishReason.STOP)
        text, stopped = self._matcher.feed(self._decoder.push(token))
        if stopped:
            self.finish = FinishReason.STOP
            return text
        return self._end(text, FinishReason.LENGTH) if self._left == 0 else text

    def end(self) -> str:
        """End it here, as an end-of-turn token would; what was held back is shown."""
        return self._end("", FinishReason.STOP)

    def _end(self, text: str, reason: FinishReason) -> str:
        """Show what was held back, unless it completes a stop string after all."""
        rest, stopped = self._matcher.feed(self._decoder.flush())
        self.finish = FinishReason.STOP if stopped else reason
        return text + rest + self._matcher.flush()
