"""`ports.Mirror` of a decode worker of whose pages nobody has copies."""

from collections.abc import Sequence

from runtime.domain.messages import Holder, Start
from runtime.domain.mirroring import FetchCall, Fetched
from runtime.domain.sequence import Ref
from runtime.errors import Unavailable
from runtime.ids import SessionId


class Unmirrored:
    def grew(self, start: Start, tokens: Sequence[int]) -> None:
        """Nothing is copied."""

    def ended(self, ref: Ref) -> None:
        """Nothing was copied."""

    def forget(self, session: SessionId) -> None:
        """Nothing was copied."""

    async def fetch(self, holder: Holder, _call: FetchCall) -> Fetched:
        raise Unavailable(f"{holder.worker} cannot be asked for pages here")


UNMIRRORED = Unmirrored()
