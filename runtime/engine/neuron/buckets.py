"""The static shapes that a compiled model has, and which of them a chunk of tokens runs in. Never touches tensors."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from runtime.domain.pages import pages_for
from runtime.domain.steps import Chunk
from runtime.errors import EngineFailed


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """One graph: up to `tokens` new tokens of one sequence, after up to `past_pages` pages of what came before."""

    tokens: int
    past_pages: int

    def __str__(self) -> str:
        return f"{self.tokens} tokens + {self.past_pages} pages"


@dataclass(frozen=True, slots=True)
class Piece:
    """`tokens` from position `start` on, run in `bucket`; `table` are the pool pages that cover them and all before."""

    bucket: Bucket
    tokens: tuple[int, ...]
    start: int
    table: tuple[int, ...]


class Buckets:
    """One at least has pages of a past, or nothing longer than a step could run."""

    def __init__(self, buckets: Iterable[Bucket], page_tokens: int) -> None:
        self.all = tuple(buckets)
        self.page_tokens = page_tokens
        assert self.max_tokens, f"no bucket has a past: {self}"

    def __str__(self) -> str:
        return ", ".join(map(str, self.all))

    @property
    def max_tokens(self) -> int:
        """The longest sequence that can be run, wherever it is cut into chunks."""
        return max(bucket.past_pages for bucket in self.all) * self.page_tokens

    def pieces(self, chunk: Chunk) -> Iterator[Piece]:
        """The launches that run `chunk`, in order. Raises `EngineFailed` when it goes on after the largest bucket."""
        start, end = chunk.start, chunk.start + len(chunk.tokens)
        while start < end:
            bucket = self.pick(end - start, start)
            tokens = chunk.tokens[start - chunk.start : start - chunk.start + bucket.tokens]
            yield Piece(bucket, tokens, start, chunk.table[: pages_for(start + len(tokens), self.page_tokens)])
            start += len(tokens)

    def pick(self, tokens: int, past_tokens: int) -> Bucket:
        """The least work that runs all of `tokens` after `past_tokens`, or else the most of them."""
        past = pages_for(past_tokens, self.page_tokens)
        reach = [bucket for bucket in self.all if bucket.past_pages >= past]
        if not reach:
            raise EngineFailed(f"no bucket holds {tokens} tokens after {past} pages; warmed are: {self}")
        whole = [bucket for bucket in reach if bucket.tokens >= tokens]
        return min(whole) if whole else min(reach, key=lambda bucket: (-bucket.tokens, bucket.past_pages))
