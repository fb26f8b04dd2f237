"""What a worker does about erased sessions: drops their pages, and takes nothing of them any more."""

import asyncio
from collections import OrderedDict

from runtime.domain.steps import Forget, Forgotten, StepOutput
from runtime.errors import StaleAttempt
from runtime.ids import SessionId
from runtime.ports import Engine

_TOMBSTONES = 100_000


class Forgetting:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._erased: OrderedDict[SessionId, None] = OrderedDict()
        self._asked: dict[SessionId, list[asyncio.Future[Forgotten]]] = {}

    def refusal(self, session: SessionId | None) -> StaleAttempt | None:
        """Why nothing of this session begins here any more, if so."""
        if session not in self._erased:
            return None
        return StaleAttempt("the session was erased", field="session")

    def bury(self, session: SessionId) -> None:
        """From now on nothing of it begins."""
        self._erased[session] = None
        self._erased.move_to_end(session)
        if len(self._erased) > _TOMBSTONES:
            self._erased.popitem(last=False)

    async def drop(self, session: SessionId) -> Forgotten:
        """Drop its pages, once the engine was told to cancel all that runs of it."""
        answer: asyncio.Future[Forgotten] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(session, []).append(answer)
        self._engine.tell(Forget(session))
        return await answer

    def on_step(self, step: StepOutput) -> None:
        for forgotten in step.forgotten:
            asked = self._asked[forgotten.session]
            answer = asked.pop(0)
            if not asked:
                del self._asked[forgotten.session]
            if not answer.done():
                answer.set_result(forgotten)
