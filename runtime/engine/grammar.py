"""Grammars over one vocabulary: compiled once, on threads of their own; and where one answer is in its grammar.

Where an answer is follows from its tokens alone, so pushing a forced prefix restores it.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from llguidance import LLMatcher, LLTokenizer

from runtime.domain.grammar import Grammar, GrammarKind
from runtime.errors import InvalidArgument

_KEPT = 128
_THREADS = 2
# The library recurses as deep as rules refer to each other, and an overflow would end the process.
_STACK_BYTES = 128 << 20
_SHOWN = 300


class Grammars:
    """`vocabulary` is called once, with the first grammar: it may take a second. Safe to use from several threads."""

    def __init__(self, vocabulary: Callable[[], LLTokenizer]) -> None:
        self._vocabulary = vocabulary
        self._tokenizer: LLTokenizer | None = None
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="grammar")
        self._lock = threading.Lock()
        self._compiling = threading.Lock()
        self._known: OrderedDict[Grammar, Future[LLMatcher]] = OrderedDict()

    def begin(self, grammar: Grammar) -> "Future[LLMatcher]":
        """Done when `start` will not wait; the same for all who ask while it is kept."""
        with self._lock:
            future = self._known.get(grammar)
            if future is None:
                before = threading.stack_size(_STACK_BYTES)
                try:
                    future = self._known[grammar] = self._pool.submit(self._compile, grammar)
                finally:
                    threading.stack_size(before)
                if len(self._known) > _KEPT:
                    self._known.popitem(last=False)
            self._known.move_to_end(grammar)
            return future

    def start(self, grammar: Grammar) -> "Constraint":
        """An answer at its beginning. Raises `InvalidArgument` naming `grammar`, with what the library says of it."""
        return Constraint(self.begin(grammar).result().deep_copy())

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _compile(self, grammar: Grammar) -> LLMatcher:
        with self._compiling:
            if self._tokenizer is None:
                self._tokenizer = self._vocabulary()
        try:
            matcher = LLMatcher(self._tokenizer, _source(grammar), log_level=0)
        except (ValueError, RecursionError) as error:
            raise _refusal(str(error)) from error
        if matcher.is_error():
            raise _refusal(matcher.get_error())
        return matcher


def _source(grammar: Grammar) -> str:
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            # Read here first: the library would paste the text, whatever it is, into JSON of its own.
            return LLMatcher.grammar_from_json_schema(json.dumps(json.loads(grammar.text)))
        case GrammarKind.REGEX:
            return LLMatcher.grammar_from_regex(grammar.text)
        case GrammarKind.CHOICE:
            return LLMatcher.grammar_from_regex("|".join(map(re.escape, grammar.choices)))
        case GrammarKind.LARK:
            return LLMatcher.grammar_from_lark(grammar.text)


def _refusal(said: str) -> InvalidArgument:
    said = " ".join(said.split())
    return InvalidArgument(f"grammar cannot be used: {said[:_SHOWN]}", field="grammar")


class Constraint:
    """Push every output token, forced and sampled alike. `ended`: nothing may follow any more."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self.ended = False
        self.error: InvalidArgument | None = None

    def push(self, token: int) -> None:
        if self.error is None and not self._matcher.consume_token(token):
            self._fail()
        self.ended = self.error is None and self._matcher.is_stopped()

    def mask(self) -> bytes | None:
        """One bit for each token id, the lowest first: whether it may come next. None, and an error, when that is too
        much to find out or nothing may."""
        if self.error is not None:
            return None
        mask = self._matcher.compute_bitmask()
        if self._matcher.is_error() or not any(mask):
            self._fail()
            return None
        return mask

    def _fail(self) -> None:
        self.error = _refusal(self._matcher.get_error() or "nothing can follow what the answer has")
