"""Has sessions deleted that have expired. What has expired, the store decides, by its own clock."""

import logging

from runtime.clock import Clock
from runtime.errors import BatonError
from runtime.session_store import SessionStore

_log = logging.getLogger(__name__)
_AT_ONCE = 64


async def sweeps(store: SessionStore, clock: Clock, every_s: float) -> None:
    """Look every so many seconds, until cancelled."""
    while True:
        await clock.sleep(every_s)
        try:
            swept = await store.sweep(_AT_ONCE)
        except BatonError as error:
            _log.warning("expired sessions could not be deleted: %s", error.message)
            continue
        if swept:
            _log.info("%d sessions expired and were deleted", len(swept))
