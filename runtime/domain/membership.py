"""Who belongs to the mesh: registrations, their leases, the view that follows from them, and what a watcher makes of
views. Never starts anybody."""

from dataclasses import replace

from runtime.domain.messages import Refused, View, Worker
from runtime.domain.routing import DECODE, PREFILL
from runtime.domain.spec import LayerGroup
from runtime.errors import FailedPrecondition, Incompatible, NotFound
from runtime.ids import BootId, WorkerId

MAX_REFUSED = 256
_REFUSED_LEASES = 10
_SERVED = ("model", "kv_fingerprint", "serving_fingerprint", "page_tokens", "frame_version")


class Membership:
    """One controller's knowledge. `incarnation` orders it after every earlier controller of this mesh; while `settling`
    it does not know yet who of theirs still lives, nor what they serve: then the more count, and not who comes first.
    """

    def __init__(self, incarnation: int, lease_s: float, *, settling: bool = False) -> None:
        self._incarnation = incarnation
        self._lease_s = lease_s
        self._settling = settling
        self._refused: dict[WorkerId, tuple[Refused, float]] = {}
        self._rivals: dict[WorkerId, Worker] = {}
        self._draining: dict[BootId, float] = {}
        self._version = 0
        self._workers: dict[WorkerId, Worker] = {}
        self._until: dict[WorkerId, float] = {}

    def view(self) -> View:
        refused = tuple(refused for refused, _ in self._refused.values())
        return View(self._incarnation, self._version, tuple(self._workers.values()), self._settling, refused)

    def settle(self) -> None:
        """Who has not registered by now is not there."""
        self._settling = False
        self._rivals.clear()
        self._version += 1

    def register(self, worker: Worker, now: float) -> bool:
        """Take a worker in or renew its lease; True when the view changed beyond its load.

        Raises `Incompatible` naming the field when it serves something else than those who are here.
        """
        known = self._workers.get(worker.id)
        self._version += 1
        try:
            for other in self._workers.values():
                if other.id != worker.id:
                    _compare(other, worker)
        except Incompatible as error:
            if not self._settling or not self._outnumber(worker):
                self._refuse(worker, error, now)
                raise
            self._turn_out(worker, now)
        self._refused.pop(worker.id, None)
        self._workers[worker.id] = replace(worker, draining=worker.draining or worker.boot in self._draining)
        self._until[worker.id] = now + self._lease_s
        return known is None or known.boot != worker.boot

    def drain(self, worker: WorkerId, until: float) -> None:
        """Have this generation of a worker leave by then. Raises `NotFound`, or `FailedPrecondition` when nobody else
        would be left that gives tokens."""
        known = self._workers.get(worker)
        if known is None:
            raise NotFound(f"no worker {worker} serves", field="worker")
        others = (other for other in self._workers.values() if other.id != worker and not other.draining)
        if known.role == DECODE and not any(other.role == DECODE for other in others):
            raise FailedPrecondition(f"{worker} is the last decode worker", field="worker")
        self._draining[known.boot] = until
        self._workers[worker] = replace(known, draining=True)
        self._version += 1

    def leaves_at(self, boot: BootId) -> float | None:
        """When this generation is to have left, if it was asked to."""
        return self._draining.get(boot)

    def leave(self, worker: WorkerId, boot: BootId) -> bool:
        """Take a worker out, but only this generation of it."""
        known = self._workers.get(worker)
        if known is None or known.boot != boot:
            return False
        self._drop(worker)
        return True

    def expire(self, now: float) -> tuple[Worker, ...]:
        """Take out those whose lease has run out."""
        gone = tuple(self._workers[ident] for ident, until in self._until.items() if until <= now)
        for worker in gone:
            self._drop(worker.id)
        for ident in [ident for ident, (_, until) in self._refused.items() if until <= now]:
            del self._refused[ident]
        return gone

    def _outnumber(self, worker: Worker) -> bool:
        """Whether those who serve what this one does, and were refused, are more than those who are here."""
        self._rivals[worker.id] = worker
        alike = sum(_alike(rival, worker) for rival in self._rivals.values())
        return alike > sum(other != worker.id for other in self._workers)

    def _turn_out(self, worker: Worker, now: float) -> None:
        """Refuse those who are here and serve something else."""
        for other in tuple(self._workers.values()):
            try:
                _compare(worker, other)
            except Incompatible as error:
                self._refuse(other, error, now)
                self._drop(other.id)

    def _refuse(self, worker: Worker, error: Incompatible, now: float) -> None:
        """Remember it for a while, for people; the oldest are forgotten first."""
        self._refused.pop(worker.id, None)
        if len(self._refused) >= MAX_REFUSED:
            del self._refused[next(iter(self._refused))]
        refused = Refused(worker.id, worker.boot, error.field or "", error.message)
        self._refused[worker.id] = refused, now + _REFUSED_LEASES * self._lease_s

    def _drop(self, worker: WorkerId) -> None:
        self._draining.pop(self._workers.pop(worker).boot, None)
        del self._until[worker]
        self._version += 1


class Belief:
    """What a watcher believes, from the views that it gets. What an earlier controller knew and a new one does not is
    believed until the new one has settled: a worker that did not register yet has not left."""

    def __init__(self) -> None:
        self.view = View(0, 0)
        self._kept: dict[WorkerId, Worker] = {}

    def take(self, new: View) -> View:
        """What is believed now. A view older than one before says nothing, such as that of a controller that was cut
        off while another took over."""
        known = self.view
        if (new.incarnation, new.version) < (known.incarnation, known.version):
            return known
        if new.incarnation > known.incarnation:
            self._kept = {worker.id: worker for worker in known.workers}
        if new.settling:
            new = replace(new, workers=tuple(worker for worker in new.workers if self._fits(worker)))
        for worker in new.workers:
            self._kept.pop(worker.id, None)
        if not new.settling:
            self._kept.clear()
        self.view = replace(new, workers=(*new.workers, *self._kept.values())) if self._kept else new
        return self.view

    def _fits(self, worker: Worker) -> bool:
        """A controller that settles takes in whoever comes first, whatever it serves."""
        return worker.id in self._kept or all(_alike(other, worker) for other in self._kept.values())


def _alike(one: Worker, other: Worker) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in _SERVED)


def _compare(here: Worker, new: Worker) -> None:
    for name in _SERVED:
        expected, got = getattr(here, name), getattr(new, name)
        if expected != got:
            raise Incompatible(f"worker {new.id}: {name} is {got}, but {here.id} serves {expected}", field=name)
    _compare_pages(here, new)


def _compare_pages(here: Worker, new: Worker) -> None:
    """Whether the pages of the one that prefills can become those of the one that decodes."""
    ours, theirs = here.pages.groups, new.pages.groups
    if ours and theirs and ours != theirs:
        raise Incompatible(
            f"worker {new.id}: pages.groups are {_shown(theirs)}, but {here.id} has {_shown(ours)}",
            field="pages.groups",
        )
    if {here.role, new.role} != {PREFILL, DECODE}:
        return
    decodes, prefills = (here, new) if here.role == DECODE else (new, here)
    if not decodes.pages.takes(prefills.pages.dtype):
        raise Incompatible(
            f"worker {new.id}: pages.dtype: {prefills.id} prefills in {prefills.pages.dtype}, and {decodes.id} takes "
            f"{' and '.join((decodes.pages.dtype, *decodes.pages.dtypes))} alone",
            field="pages.dtype",
        )


def _shown(groups: tuple[LayerGroup, ...]) -> str:
    return ", ".join(
        f"{len(group.layers)} layers of {group.kind.value} {group.heads} x {group.head_dim}"
        + (f" within {group.window} tokens" if group.window else "")
        for group in groups
    )
