"""Those who watch sessions: what happened, in order, as it becomes known here. Never changes anything."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from runtime.domain.notices import Notice
from runtime.domain.sessions import Branch, Session
from runtime.errors import ResourceExhausted
from runtime.ids import SessionId, TenantId
from runtime.session_store import SessionStore

_PAGE = 64


class Watchers:
    """At most `most` at a time. Each looks when it is woken, and every `look_s`, since a wake-up may be lost."""

    def __init__(self, store: SessionStore, look_s: float = 2.0, most: int = 1024) -> None:
        self._store = store
        self._look_s = look_s
        self._most = most
        self._count = 0

    async def watch(
        self, tenant: TenantId, session: SessionId, after: int | None
    ) -> AsyncGenerator[tuple[Session, tuple[Branch, ...]] | Notice, None]:
        """The session as it is, unless there is an `after`, and then what happens to it; raises `NotFound` when it is
        gone, and as `SessionStore.notices`."""
        with self._counted(), self._store.hearing(session) as bell:
            if after is None:
                found = await self._store.get(tenant, session)
                yield found
                after = found[0].account.notices
            while True:
                notices = await self._store.notices(tenant, session, after, _PAGE)
                for notice in notices:
                    yield notice
                    after = notice.number
                if len(notices) < _PAGE:
                    await bell.wait(self._look_s)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self._count >= self._most:
            raise ResourceExhausted(f"{self._count} watch sessions at this gateway already", retry_after_ms=1000)
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1
