"""The cold tier: pages as sealed objects in a store that outlives this process. Which are there, reading, writing, age.

Everything but `in`, `lacks`, `readers`, `touch`, `bury` and `report` blocks its thread. What befalls the store is
counted and costs recomputation.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from runtime.domain.readers import Buried, Reader
from runtime.domain.steps import Frame
from runtime.domain.tiers import Tier, TierReport, Wanted, collectable
from runtime.errors import DataCorrupt, NotFound, Unavailable
from runtime.ids import PageId
from runtime.kv.tiers.changes import Changes
from runtime.kv.tiers.counting import Counting
from runtime.kv.tiers.index import Index
from runtime.kv.tiers.naming import Entry, entries, mark_name, model_prefix, page_name
from runtime.kv.tiers.objects import Objects
from runtime.kv.tiers.pages import PageCodec
from runtime.kv.tiers.patience import Patience
from runtime.kv.tiers.sealing import SEAL_BYTES, seal, unseal

# So that a full store has some room again, and not for one page only.
_COLLECTED_TO = 0.9
# A mark comes just before its page: one without, and that old, is of a writer that died, or of a page that is gone.
_ABANDONED_S = 3600.0
_LATE_S = 3.0


class ColdTier:
    """Of one model, in `objects`. Holds at most `capacity_bytes`, and nothing that was not used for `keep_s`. It is
    `full` once it has no room for a page, until `keep` has made some."""

    def __init__(
        self,
        objects: Objects,
        codec: PageCodec,
        capacity_bytes: int,
        keep_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.full = False
        self.reading, self.writing, self.listing = Patience(now), Patience(now), Patience(now)
        self._objects = objects
        self._codec = codec
        self._capacity_bytes = capacity_bytes
        self._keep_s = keep_s
        self._now = now
        self._prefix = model_prefix(codec.spec)
        self._page_bytes = codec.page_bytes + SEAL_BYTES
        self._index = Index(now)
        self._count = Counting(Tier.COLD)
        self._buried = Buried()
        self._writers: Counter[Reader] = Counter()
        self._wrote = threading.Condition()

    @property
    def changes(self) -> Changes:
        """Of what is there, as far as this worker knows."""
        return self._index.changes

    def __contains__(self, page: PageId) -> bool:
        """Whether it is there, as far as this worker knows."""
        return page in self._index

    def lacks(self, page: PageId, readers: frozenset[Reader]) -> bool:
        """Whether it is not there, or does not say that all of these have used it."""
        return page not in self._index or bool(self._index.unmarked(page, readers))

    def readers(self, page: PageId) -> frozenset[Reader]:
        """Who has used it, as far as this worker knows."""
        return self._index.readers(page)

    def touch(self, page: PageId) -> None:
        """It is used, by a sequence here."""
        self._index.touch(page)

    def read(self, page: PageId, parent: PageId, salt: bytes) -> Frame | None:
        """A verified page; None when it cannot be had."""
        if self.reading.left:
            return None
        name = page_name(self._prefix, page, parent)
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
        self._count.read += 1
        return frame

    def write(self, frame: Frame | None, wanted: Wanted) -> bool:
        """Keep a page, and first who uses it; without a frame only that. Whether it need not be tried again."""
        with self._writing(wanted) as readers:
            if not readers:
                return True
            if self.writing.left:
                return False
            name = page_name(self._prefix, wanted.page, wanted.parent)
            try:
                for reader in sorted(self._index.unmarked(wanted.page, readers)):
                    self._objects.create(mark_name(name, reader), b"")
                    self._index.mark(wanted.page, reader)
                if frame is not None and wanted.page not in self._index and self._has_room():
                    sealed = seal(self._codec.encode(frame), wanted.page, name, wanted.salt)
                    self._objects.create(name, sealed)
                    self._index.add(wanted.page, len(sealed))
                    self._count.written += 1
            except Unavailable as error:
                self._in_trouble(self.writing, "writing", error.message)
                return False
            self.writing.worked()
            return True

    def keep(self) -> None:
        """Learn what is there, also by others, and collect what is not to be kept, of whatever model it was. Finds the
        tier again at a start."""
        try:
            began, store_now = self._now(), self._asked_time()
            listed = entries(self._objects.list(), self._prefix)
            # Perhaps of a worker that was frozen, and wrote before it was told.
            for page in self._erase(listed):
                del listed[page]
            pages = self._index.aged((each.stored for each in listed.values() if each.stored), store_now)
            full = sum(page.size for page in pages) + self._page_bytes > self._capacity_bytes
            most = round(self._capacity_bytes * _COLLECTED_TO) if full else self._capacity_bytes
            gone = collectable(pages, before=store_now - self._keep_s, most_bytes=most)
            names = [name for page in gone for name in listed.pop(page).names()]
            self._objects.delete([*names, *_abandoned(listed, store_now - _ABANDONED_S)])
            for page in gone:
                self._index.forget(page)
            ours = {page: each for page, each in listed.items() if each.model == self._prefix}
            sizes = {page: each.stored.size for page, each in ours.items() if each.stored}
            marks = {page: frozenset(each.marks) for page, each in ours.items() if each.marks}
            self._index.replace(sizes, marks, began)
            self.full = False
            self._objects.sweep(store_now)
        except Unavailable as error:
            self._in_trouble(self.listing, "keeping", error.message)
            return
        self.listing.worked()
        if not self.reading.left:
            self.reading.worked()

    def bury(self, reader: Reader) -> None:
        """Write nothing more of what only this reader has used."""
        with self._wrote:
            self._buried.add(reader)

    def forget(self, reader: Reader) -> tuple[int, int]:
        """Remove what only this reader has used, of whatever model, after what is being written of it; gives how many
        pages, and how many of its others stay for those who have used them too. Raises `Unavailable`."""
        self.bury(reader)
        with self._wrote:
            if not self._wrote.wait_for(lambda: not self._writers[reader], _LATE_S):
                raise Unavailable("a page of it is still being written", retry_after_ms=1000)
        listed = entries(self._objects.list(), self._prefix)
        used = {page for page, each in listed.items() if reader in each.marks and each.stored}
        gone = used & self._erase(listed)
        return len(gone), len(used - gone)

    def report(self) -> TierReport:
        kinds = (("reading", self.reading), ("writing", self.writing), ("keeping", self.listing))
        trouble = "; ".join(f"{kind}: {patience.cause}" for kind, patience in kinds if patience.cause)
        pages, used = len(self._index), self._index.bytes
        return self._count.report(self._objects.place, pages, used, self._capacity_bytes, trouble)

    def slow(self, patience: Patience) -> None:
        """It did not answer in time."""
        self._in_trouble(patience, "slow", "it does not answer in time")

    def _erase(self, listed: Mapping[PageId, Entry]) -> set[PageId]:
        """Remove what only those have used who are buried; gives these pages."""
        alone, marks = set[PageId](), list[str]()
        for page, each in listed.items():
            living = self._buried.living(frozenset(each.marks))
            if len(living) < len(each.marks):
                marks += [mark_name(each.name, reader) for reader in each.marks if reader not in living]
                each.marks = {reader: at for reader, at in each.marks.items() if reader in living}
                self._index.remark(page, living)
                if not living:
                    alone.add(page)
        # Marks last: they are what finds the pages again when this is cut short.
        if marks:
            self._objects.delete([listed[page].name for page in alone])
            self._objects.delete(marks)
        for page in alone:
            self._index.forget(page)
        return alone

    def _asked_time(self) -> float:
        """The store's. After trouble with writing it is asked with a page's worth of bytes, and that ends the trouble,
        also where there is nothing to write."""
        if not self.writing.cause or self.writing.left:
            return self._objects.now(self._prefix)
        try:
            found = self._objects.now(self._prefix, self._codec.page_bytes)
        except Unavailable as error:
            self._in_trouble(self.writing, "writing", error.message)
            return self._objects.now(self._prefix)
        self.writing.worked()
        return found

    def _has_room(self) -> bool:
        """By what this worker knows; others write as well, so a store may grow a little beyond its bound."""
        self.full |= self._index.bytes + self._page_bytes > self._capacity_bytes
        return not self.full

    @contextmanager
    def _writing(self, wanted: Wanted) -> Iterator[frozenset[Reader]]:
        """While a page is written: those for whom it is, who are not buried."""
        with self._wrote:
            readers = self._buried.living(wanted.readers)
            self._writers.update(readers)
        try:
            yield readers
        finally:
            with self._wrote:
                self._writers.subtract(readers)
                for reader in readers:
                    if not self._writers[reader]:
                        del self._writers[reader]
                self._wrote.notify_all()

    def _in_trouble(self, patience: Patience, what: str, message: str) -> None:
        patience.failed(message)
        self._count.failed(what, message)

    def _discard(self, page: PageId, name: str) -> None:
        """Nobody can read it, and as long as it is there nobody can write it anew."""
        self._index.forget(page)
        try:
            self._objects.delete([name])
        except Unavailable as error:
            self._in_trouble(self.writing, "writing", error.message)


def _abandoned(listed: dict[PageId, Entry], before: float) -> Iterator[str]:
    """Marks whose page has not come."""
    for entry in listed.values():
        if entry.stored is None and all(at < before for at in entry.marks.values()):
            yield from (mark_name(entry.name, reader) for reader in entry.marks)
