"""Which pages of a pool are under which grants, within quotas (invariant 11). Never forgets a page itself."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from runtime.domain.retention import Keeping, Quota, Refusal
from runtime.errors import InvariantViolation
from runtime.ids import SequenceId, SessionId


@dataclass(slots=True)
class _Grant:
    """`pages` from the beginning of its context on. `tenant` is the secret that keys their ids."""

    session: SessionId
    tenant: bytes
    pages: list[int]
    quota: Quota


class Grants:
    """A page may be under several grants, of one tenant; it counts once."""

    def __init__(self) -> None:
        self._grants: dict[SequenceId, _Grant] = {}
        self._under: dict[int, set[SequenceId]] = {}
        self._of_tenants: Counter[bytes] = Counter()
        self._changed: list[Keeping] = []

    def __contains__(self, page: int) -> bool:
        return page in self._under

    def __len__(self) -> int:
        """Pages under grants."""
        return len(self._under)

    @property
    def changed(self) -> bool:
        return bool(self._changed)

    def drain_changes(self) -> tuple[Keeping, ...]:
        """What grants lost since the last call."""
        changed, self._changed = tuple(self._changed), []
        return changed

    def refusal(self, tenant: bytes, pages: Sequence[int], quota: Quota) -> Refusal | None:
        """Why these pages get no grant now, if so."""
        if not pages:
            return Refusal.NO_PAGE
        fresh = sum(page not in self._under for page in pages)
        if self._of_tenants[tenant] + fresh > quota.tenant:
            return Refusal.TENANT_QUOTA
        return Refusal.WORKER_QUOTA if len(self._under) + fresh > quota.worker else None

    def begin(
        self, sequence: SequenceId, session: SessionId, tenant: bytes, pages: Sequence[int], quota: Quota
    ) -> None:
        """Grant what is not refused."""
        self._grants[sequence] = _Grant(session, tenant, [*pages], quota)
        for page in pages:
            under = self._under.get(page)
            if under is None:
                under = self._under[page] = set()
                self._of_tenants[tenant] += 1
            under.add(sequence)

    def end(self, sequence: SequenceId) -> list[int]:
        """The grant is over, if it was not; gives its pages that are under no other."""
        grant = self._grants.pop(sequence, None)
        if grant is None:
            return []
        self._changed.append(Keeping(sequence, 0))
        return [page for page in grant.pages if self._leave(page, sequence, grant.tenant)]

    def lose(self, page: int) -> None:
        """A page of grants is forgotten: it was the last of each of them."""
        for sequence in sorted(self._under[page]):
            grant = self._grants[sequence]
            if grant.pages[-1] == page:
                grant.pages.pop()
            else:
                grant.pages.remove(page)
            self._leave(page, sequence, grant.tenant)
            self._changed.append(Keeping(sequence, len(grant.pages)))
            if not grant.pages:
                del self._grants[sequence]

    def all(self) -> list[SequenceId]:
        """Of which sequences there are grants."""
        return [*self._grants]

    def of(self, session: SessionId) -> list[SequenceId]:
        return [sequence for sequence, grant in self._grants.items() if grant.session == session]

    def used_by(self, session: SessionId, pages: Collection[int]) -> list[SequenceId]:
        """The grants of a session that is back, with these pages. The last page of a context may have ended with
        tokens that the conversation did not keep, and so was not found again."""
        here = set(pages)
        return [
            sequence
            for sequence in self.of(session)
            if len(here.intersection(grant := self._grants[sequence].pages)) >= max(len(grant) - 1, 1)
        ]

    def check(self) -> None:
        """Raise `InvariantViolation` 11 unless the pages are those of the grants, within each one's quota."""
        under = {page for grant in self._grants.values() for page in grant.pages}
        if under != self._under.keys() or sum(self._of_tenants.values()) != len(under):
            raise InvariantViolation(11, f"{len(under)} pages are of grants, {len(self._under)} are accounted")
        for sequence, grant in self._grants.items():
            held, quota = self._of_tenants[grant.tenant], grant.quota
            if len(under) > quota.worker or held > quota.tenant:
                told = f"{len(under)} pages are under grants, {held} of one tenant; {sequence} was granted of {quota}"
                raise InvariantViolation(11, told)

    def _leave(self, page: int, sequence: SequenceId, tenant: bytes) -> bool:
        """Whether no grant has the page any more."""
        under = self._under[page]
        under.discard(sequence)
        if under:
            return False
        del self._under[page]
        self._of_tenants[tenant] -= 1
        return True
