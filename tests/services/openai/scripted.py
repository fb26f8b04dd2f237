"""A gateway that says what a test wrote down, for faults that real workers do not have on demand."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import cast

from runtime.domain.generation import Delta, Generation
from runtime.domain.messages import View
from runtime.engine.simulated import SimulatedTokenizer
from runtime.errors import BatonError
from runtime.ports import Tokenizer
from runtime.roles.deltas import Deltas
from runtime.roles.gateway import GatewayRole, ServedModel
from tests.services.openai.one_worker import CREATED, SPEC


class ScriptedGateway:
    """Gives `script` to every turn; then the turn waits. `left` is set when a turn's context was left."""

    def __init__(self, script: Sequence[Delta | BatonError] = (), tokenizer: Tokenizer | None = None) -> None:
        self.asked: list[Generation] = []
        self.opened = asyncio.Event()
        self.left = asyncio.Event()
        self.turn: asyncio.Queue[Delta | BatonError] = asyncio.Queue()
        self._script = script
        self._model = ServedModel(SPEC, tokenizer or SimulatedTokenizer(), CREATED)

    @property
    def role(self) -> GatewayRole:
        return cast("GatewayRole", self)

    def models(self) -> tuple[ServedModel, ...]:
        return (self._model,)

    def served(self, name: str) -> ServedModel:
        return self._model

    def view(self) -> View:
        return View(0, 0)

    def fresh_seed(self) -> int:
        return 7

    @asynccontextmanager
    async def open(self, generation: Generation) -> AsyncIterator[Deltas]:
        self.asked.append(generation)
        for item in self._script:
            self.turn.put_nowait(item)
        self.opened.set()
        try:
            yield Deltas(self.turn)
        finally:
            self.left.set()
