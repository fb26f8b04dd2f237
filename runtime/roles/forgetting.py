"""What a worker does about erased sessions: drops their pages, from its pool and from what is behind it, and takes
nothing of them any more.
"""

import asyncio
from collections import OrderedDict

from runtime.domain.steps import Forget, Forgotten, StepOutput
from runtime.errors import StaleAttempt
from runtime.ids import SessionId
from runtime.ports import Engine, Tiers

_TOMBSTONES = 100_000


class Forgetting:
    def __init__(self, engine: Engine, tiers: Tiers) -> None:
        self._engine = engine
        self._tiers = tiers
        self._erased: OrderedDict[SessionId, None] = OrderedDict()
        self._asked: dict[SessionId, list[asyncio.Future[Forgotten]]] = {}
        # What the pool dropped of those whose tiers have not done so yet.
        self._dropped: dict[SessionId, Forgotten] = {}

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
        """Drop its pages, once the engine was told to cancel all that runs of it. Raises `Unavailable` while what is
        behind the pool cannot be asked.

        When the pool answers, the tiers have heard of every page that the session filled, and hear of none after that.
        """
        answer: asyncio.Future[Forgotten] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(session, []).append(answer)
        self._engine.tell(Forget(session))
        done, before = await answer, self._dropped.get(session, Forgotten(session, 0, 0))
        self._dropped[session] = Forgotten(session, before.dropped + done.dropped, before.shared + done.shared)
        dropped, shared = await self._tiers.forget(session)
        pool = self._dropped.pop(session, Forgotten(session, 0, 0))
        return Forgotten(session, pool.dropped + dropped, pool.shared + shared)

    def on_step(self, step: StepOutput) -> None:
        for forgotten in step.forgotten:
            asked = self._asked[forgotten.session]
            answer = asked.pop(0)
            if not asked:
                del self._asked[forgotten.session]
            if not answer.done():
                answer.set_result(forgotten)
