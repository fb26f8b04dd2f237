"""Who belongs to the mesh: registrations, their leases, and the view that follows from them. Never starts anybody."""

from runtime.domain.messages import View, Worker
from runtime.errors import Incompatible
from runtime.ids import BootId, WorkerId


class Membership:
    """One controller's knowledge. `incarnation` orders it after every earlier controller of this mesh."""

    def __init__(self, incarnation: int, lease_s: float) -> None:
        self._incarnation = incarnation
        self._lease_s = lease_s
        self._version = 0
        self._workers: dict[WorkerId, Worker] = {}
        self._until: dict[WorkerId, float] = {}

    def view(self) -> View:
        return View(self._incarnation, self._version, tuple(self._workers.values()))

    def register(self, worker: Worker, now: float) -> bool:
        """Take a worker in or renew its lease; True when the view changed beyond its load.

        Raises `Incompatible` naming the field when it serves something else than those who are here.
        """
        known = self._workers.get(worker.id)
        for other in self._workers.values():
            if other.id != worker.id:
                _compare(other, worker)
        self._workers[worker.id] = worker
        self._until[worker.id] = now + self._lease_s
        changed = known is None or known.boot != worker.boot
        self._version += 1
        return changed

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
        return gone

    def _drop(self, worker: WorkerId) -> None:
        del self._workers[worker]
        del self._until[worker]
        self._version += 1


def _compare(here: Worker, new: Worker) -> None:
    for name in ("model", "kv_fingerprint", "serving_fingerprint", "page_tokens"):
        expected, got = getattr(here, name), getattr(new, name)
        if expected != got:
            raise Incompatible(f"worker {new.id}: {name} is {got}, but {here.id} serves {expected}", field=name)
