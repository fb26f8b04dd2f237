"""A POST that generates: its body becomes a turn of the gateway, the turn's deltas become the response.

Leaves the turn, and so cancels it everywhere, when the client goes away or its deadline passes.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from runtime.domain.generation import Delta, Generation
from runtime.domain.sequence import FinishReason
from runtime.errors import BatonError, ContextExceeded
from runtime.roles.calls import CallReader, equipped
from runtime.roles.gateway import GatewayRole, ServedModel
from runtime.services.access import calling
from runtime.services.banning import banned_spellings
from runtime.services.choices import Arrivals, give_choices
from runtime.services.openai.answers import DONE, Answer, Head, Tally
from runtime.services.openai.body import parse_body
from runtime.services.openai.exchange import Exchange
from runtime.services.openai.prompts import ShownPrompt, text_of
from runtime.services.openai.schema import GenerationRequest
from runtime.services.openai.serving import Serving, within
from runtime.services.openai.settings import OpenAiSettings
from runtime.services.openai.spelling import Spelling
from runtime.services.openai.tokenizing import TokenizingPool

if TYPE_CHECKING:
    from runtime.domain.sequence import Sampled


class Generating(Serving):
    """An ASGI application for one path; `asks` and `answers` say which of the two APIs it speaks."""

    def __init__(
        self,
        gateway: GatewayRole,
        settings: OpenAiSettings,
        pool: TokenizingPool,
        asks: type[GenerationRequest],
        answers: type[Answer],
    ) -> None:
        super().__init__(settings)
        self._gateway = gateway
        self._pool = pool
        self._asks = asks
        self._answers = answers
        self._spellings: dict[str, Spelling] = {}

    async def _respond(self, exchange: Exchange, body: bytes, ends: float) -> None:
        called: Callable[[str], str] = str
        try:
            asked = parse_body(self._asks, body)
            called = asked.called
            served = self._gateway.served(asked.model)
            generation = await self._generation(asked, served, ends)
            shown = await self._shown(asked, served, generation)
            answers = self._begin(asked, served, shown)
            if asked.toolbox.callable:
                for answer in answers:
                    answer.read(CallReader(served.tokenizer, asked.toolbox, answer.named))
            tallies = [Tally(len(generation.prompt)) for _ in answers]

            async def give(arrivals: Arrivals) -> None:
                heard = _heard(arrivals, shown, silent=asked.silent)
                if asked.stream:
                    await stream(exchange, answers, tallies, heard, arrivals.ready, usage_asked=asked.usage_asked)
                else:
                    body = await gather(answers, tallies, heard, lambda: arrivals.withheld)
                    await exchange.respond(200, body, {})

            await give_choices(self._gateway, generation, asked.choices_asked, asked.candidates_asked, give)
        except BatonError as error:
            await exchange.fail(error, called)

    async def _generation(self, asked: GenerationRequest, served: ServedModel, ends: float) -> Generation:
        if asked.text_size <= self._settings.inline_chars:
            prompt = asked.tokenize(served.tokenizer)
        else:
            prompt = await within(ends, self._pool.run(partial(asked.tokenize, served.tokenizer)))
        room = served.spec.max_tokens - len(prompt)
        if room < 1:
            limit = f"the model's context of {served.spec.max_tokens} tokens leaves no room for an answer"
            raise ContextExceeded(f"the prompt has {len(prompt)} tokens: {limit}", field="prompt")
        sampling = asked.sampling(room, self._gateway.fresh_seed())
        if asked.bad_words:
            banned = sampling.banned_tokens + banned_spellings(asked.bad_words, served.tokenizer)
            sampling = replace(sampling, banned_tokens=banned)
        if asked.toolbox.callable:
            sampling = equipped(sampling, asked.toolbox, served.tokenizer)
        remaining = ends - asyncio.get_running_loop().time()
        tenant = calling().tenant or self._settings.tenant
        return Generation(served.spec.name, tuple(prompt), sampling, tenant, remaining, asked.priority or 0)

    async def _shown(self, asked: GenerationRequest, served: ServedModel, generation: Generation) -> ShownPrompt:
        spelling = self._spellings.setdefault(served.spec.name, Spelling(served.tokenizer))
        echo = ""
        if asked.echoes:
            given = asked.prompt_text
            echo = given if given is not None else await asyncio.to_thread(text_of, generation.prompt, served.tokenizer)
        return ShownPrompt(generation.prompt, spelling, echo, asked.columns_asked, asked.prompt_logprobs)

    def _begin(self, asked: GenerationRequest, served: ServedModel, shown: ShownPrompt) -> list[Answer]:
        """The answer of every choice, with nothing in it yet."""
        spec = served.spec
        ident = f"{self._answers.ids}-{uuid.uuid4().hex}"
        head = Head(ident, int(time.time()), spec.name, f"fp_{spec.serving_fingerprint[:12]}")
        logprobs, usage_asked = asked.logprobs_asked is not None, asked.usage_asked
        return [
            self._answers(head, shown.spelling, shown, logprobs=logprobs, usage_asked=usage_asked, index=index)
            for index in range(asked.choices_asked)
        ]


async def _heard(arrivals: Arrivals, shown: ShownPrompt, *, silent: bool) -> AsyncIterator[tuple[int, Delta]]:
    """What arrives, once it is noted what it tells of the prompt. The first choice speaks first."""
    async for index, delta in arrivals:
        if delta.scores is not None:
            shown.scores = delta.scores
        yield index, replace(delta, tokens=(), text="", finish=FinishReason.LENGTH) if silent else delta


async def stream(
    exchange: Exchange,
    answers: list[Answer],
    tallies: list[Tally],
    heard: AsyncIterator[tuple[int, Delta]],
    ready: Callable[[], bool],
    *,
    usage_asked: bool,
) -> None:
    """What is ready at the same time goes out in one write."""
    for answer in answers:
        exchange.add(answer.opening())
    async for index, delta in heard:
        tallies[index].add(delta)
        exchange.add(answers[index].pieces(delta))
        if delta.finish is not None:
            exchange.add(answers[index].closing(tallies[index]))
        elif not ready():
            await exchange.flush()
    if usage_asked:
        exchange.add(answers[0].usage(tallies))
    exchange.add(DONE)
    await exchange.end()


async def gather(
    answers: list[Answer],
    tallies: list[Tally],
    heard: AsyncIterator[tuple[int, Delta]],
    withheld: Callable[[], int],
) -> bytes:
    """The whole response."""
    texts: list[list[str]] = [[] for _ in answers]
    tokens: list[list[Sampled]] = [[] for _ in answers]
    async for index, delta in heard:
        tallies[index].add(delta)
        texts[index].append(delta.text)
        tokens[index].extend(delta.tokens)

    tallies[0].withheld = withheld()

    def written() -> bytes:
        each = zip(answers, texts, tokens, tallies, strict=True)
        choices = [answer.choice("".join(parts), sampled, tally) for answer, parts, sampled, tally in each]
        return answers[0].whole(choices, tallies)

    # A long prompt's log-probabilities take a tenth of a second to write.
    return written() if answers[0].prompt.scores is None else await asyncio.to_thread(written)
