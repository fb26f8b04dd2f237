"""The cold tier: pages as sealed objects in a store that outlives this process. Which are there, reading, writing, age.

Everything but `in`, `touch` and `report` blocks its thread. What befalls the store is counted and costs recomputation.

An object is named `<model>/<aa>/<page>-<parent>`: after what is in it, so that whoever writes it writes the same, and
with what it continues, so that a listing tells which pages are found through which. `<model>` names all that makes
pages interchangeable.
"""

import time
from collections.abc import Callable

from runtime.domain.pages import ROOT
from runtime.domain.steps import Frame
from runtime.domain.tiers import Stored, Tier, TierReport, Wanted, collectable
from runtime.errors import DataCorrupt, NotFound, Unavailable
from runtime.ids import PageId
from runtime.kv.frames import VERSION
from runtime.kv.tiers.counting import Counting
from runtime.kv.tiers.index import Index
from runtime.kv.tiers.objects import Listed, Objects
from runtime.kv.tiers.pages import PageCodec
from runtime.kv.tiers.patience import Patience
from runtime.kv.tiers.sealing import seal, unseal

# So that a full store has some room again, and not for one page only.
_COLLECTED_TO = 0.9
_NO_PARENT = "0"


class ColdTier:
    """Of one model, in `objects`. Holds at most `capacity_bytes`, and nothing that was not used for `keep_s`."""

    def __init__(
        self,
        objects: Objects,
        codec: PageCodec,
        capacity_bytes: int,
        keep_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        spec = codec.spec
        self.reading, self.writing = Patience(now), Patience(now)
        self._objects = objects
        self._codec = codec
        self._capacity_bytes = capacity_bytes
        self._keep_s = keep_s
        self._now = now
        self._prefix = f"{spec.kv_fingerprint}-{spec.dtype}-{spec.page_tokens}-v{VERSION}"
        self._index = Index(now)
        self._count = Counting(Tier.COLD)

    def __contains__(self, page: PageId) -> bool:
        """Whether it is there, as far as this worker knows."""
        return page in self._index

    def touch(self, page: PageId) -> None:
        """It is used, by a sequence here."""
        self._index.touch(page)

    def read(self, page: PageId, parent: PageId, salt: bytes) -> Frame | None:
        """A verified page; None when it cannot be had."""
        if self.reading.left:
            return None
        name = self._name(page, parent)
        try:
            content = self._objects.get(name)
            self.reading.worked()
            frame = self._codec.decode(unseal(content, page, name, salt))
            if frame.page != page:
                raise DataCorrupt(f"{name} holds another page", field="page")
        except NotFound:
            self._index.forget(page)
            return None
        except Unavailable as error:
            self._in_trouble(self.reading, "reading", error.message)
            return None
        except DataCorrupt as error:
            self._count.failed(f"corrupt {error.field}", error.message)
            self._discard(page, name)
            return None
        self._count.trouble = ""
        self._count.read += 1
        return frame

    def write(self, frame: Frame, wanted: Wanted) -> bool:
        """Keep a page; whether it is there now."""
        if frame.page in self._index:
            return True
        if self.writing.left:
            return False
        name = self._name(wanted.page, wanted.parent)
        sealed = seal(self._codec.encode(frame), wanted.page, name, wanted.salt)
        try:
            self._objects.create(name, sealed)
        except Unavailable as error:
            self._in_trouble(self.writing, "writing", error.message)
            return False
        self.writing.worked()
        self._count.trouble = ""
        self._count.written += 1
        self._index.add(wanted.page, len(sealed))
        return True

    def keep(self) -> None:
        """Learn what is there, also by others, and collect what is not to be kept, of whatever model it was. Finds the
        tier again at a start."""
        try:
            began, store_now = self._now(), self._objects.now(self._prefix)
            found = map(self._parse, self._objects.list())
            listed = {each.page: (name, each) for name, each in found if each is not None}
            pages = self._index.aged((page for _, page in listed.values()), store_now)
            full = sum(page.size for page in pages) > self._capacity_bytes
            most = round(self._capacity_bytes * _COLLECTED_TO) if full else self._capacity_bytes
            gone = collectable(pages, before=store_now - self._keep_s, most_bytes=most)
            self._objects.delete([listed.pop(page)[0] for page in gone])
            for page in gone:
                self._index.forget(page)
            ours = {page: each.size for page, (name, each) in listed.items() if name.startswith(f"{self._prefix}/")}
            self._index.replace(ours, began)
            self._objects.sweep(store_now)
        except Unavailable as error:
            self._in_trouble(self.writing, "keeping", error.message)

    def report(self) -> TierReport:
        return self._count.report(self._objects.place, len(self._index), self._index.bytes, self._capacity_bytes)

    def slow(self) -> None:
        """It did not answer in time."""
        self._in_trouble(self.reading, "slow", "reading took too long")

    def _in_trouble(self, patience: Patience, what: str, message: str) -> None:
        patience.failed()
        self._count.trouble = message
        self._count.failed(what, message)

    def _discard(self, page: PageId, name: str) -> None:
        """Nobody can read it, and as long as it is there nobody can write it anew."""
        self._index.forget(page)
        try:
            self._objects.delete([name])
        except Unavailable as error:
            self._in_trouble(self.writing, "writing", error.message)

    def _name(self, page: PageId, parent: PageId) -> str:
        return f"{self._prefix}/{page[:1].hex()}/{page.hex()}-{parent.hex() or _NO_PARENT}"

    def _parse(self, listed: Listed) -> tuple[str, Stored | None]:
        """None for what is no page. In another data type a page has the same id: so those of others have more of a
        name here."""
        model, _, rest = listed.name.partition("/")
        page, _, parent = rest.rpartition("/")[2].partition("-")
        other = b"" if model == self._prefix else model.encode()
        try:
            known = PageId(other + bytes.fromhex(page))
            before = ROOT if parent == _NO_PARENT else PageId(other + bytes.fromhex(parent))
        except ValueError:
            return listed.name, None
        return listed.name, Stored(known, before, listed.size, listed.modified)
