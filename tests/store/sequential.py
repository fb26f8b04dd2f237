"""A session's store as it would be if everybody waited for everybody else: the model that histories are held against.

It knows no SQL, rows or locks: lines are counted, branches have their past, turns their fate. What it answers is all
that a caller is told, places and epochs included.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from runtime.domain.sessions import MAIN, UNFINISHED, Halt, OnConflict, Place, TurnStatus
from runtime.ids import GatewayId, TurnId

OUTPUT, KEPT = (7, 8, 2), 2
BEGINNING = Place(0, 0)
_HALTS = {OnConflict.INTERRUPT: Halt.INTERRUPT, OnConflict.ROLLBACK: Halt.DISCARD}


@dataclass(frozen=True, slots=True)
class Get:
    """All branches."""


@dataclass(frozen=True, slots=True)
class Past:
    """A branch's context."""

    branch: str


@dataclass(frozen=True, slots=True)
class Open:
    """`expects` is the head that is expected, in a tuple, if one is."""

    turn: TurnId
    branch: str
    owner: GatewayId
    base: Place
    policy: OnConflict
    expects: tuple[TurnId | None, ...] = ()
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    branch: str


@dataclass(frozen=True, slots=True)
class Begin:
    turn: TurnId
    branch: str
    owner: GatewayId
    base: Place


@dataclass(frozen=True, slots=True)
class Finish:
    turn: TurnId
    branch: str
    epoch: int
    status: TurnStatus


@dataclass(frozen=True, slots=True)
class Fork:
    branch: str
    at: TurnId | None
    name: str


@dataclass(frozen=True, slots=True)
class Rollback:
    branch: str
    to: TurnId | None


@dataclass(frozen=True, slots=True)
class Cancel:
    turn: TurnId
    how: Halt


@dataclass(frozen=True, slots=True)
class Hear:
    """Which of its turns an owner is asked to stop."""

    owner: GatewayId


What = Get | Past | Open | Waiting | Begin | Finish | Fork | Rollback | Cancel | Hear


@dataclass(frozen=True, slots=True)
class Refused:
    """`kind` is the error's code, `field` what it names."""

    kind: str
    field: str | None


@dataclass(frozen=True, slots=True)
class Branch:
    place: Place = BEGINNING
    past: tuple[TurnId, ...] = ()
    epoch: int = 0
    live: TurnId | None = None
    queue: tuple[TurnId, ...] = ()

    @property
    def head(self) -> TurnId | None:
        return self.past[-1] if self.past else None

    @property
    def told(self) -> tuple[object, ...]:
        return self.place, self.head, self.epoch, self.live


@dataclass(frozen=True, slots=True)
class Turn:
    branch: str
    owner: GatewayId
    status: TurnStatus
    epoch: int
    place: Place | None = None
    halt: Halt | None = None

    @property
    def told(self) -> tuple[object, ...]:
        return self.status, self.epoch, self.halt


@dataclass(frozen=True)
class Session:
    """Its states are compared by what they say, so that a search knows where it has been."""

    lines: int = 1
    branches: Mapping[str, Branch] = field(default_factory=lambda: {MAIN: Branch()})
    turns: Mapping[TurnId, Turn] = field(default_factory=dict)
    keys: Mapping[str, TurnId] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.lines, frozenset(self.branches.items()), frozenset(self.turns.items())))


def tokens_of(past: tuple[TurnId, ...]) -> tuple[int, ...]:
    """Of a branch whose turns are these: each is named by the token that it asks."""
    return tuple(token for turn in past for token in (int(turn), *OUTPUT[:KEPT]))


def step(state: Session, what: What) -> tuple[Session, object]:
    """The session after a call, and what its caller is told."""
    match what:
        case Get():
            return state, tuple(sorted((name, *branch.told) for name, branch in state.branches.items()))
        case Hear(owner):
            mine = ((ident, turn) for ident, turn in state.turns.items() if turn.owner == owner)
            return state, {ident: turn.halt for ident, turn in mine if turn.halt and turn.status in UNFINISHED}
        case Cancel():
            return _cancel(state, what)
        case _ if what.branch not in state.branches:
            return state, None if isinstance(what, Waiting) else Refused("not_found", "branch")
        case _:
            return _step_on(state, state.branches[what.branch], what)


def _step_on(  # noqa: C901, PLR0911 - a table, a row each
    state: Session, branch: Branch, what: Past | Open | Waiting | Begin | Finish | Fork | Rollback
) -> tuple[Session, object]:
    match what:
        case Past():
            return state, (branch.place, branch.head, tokens_of(branch.past))
        case Waiting():
            return state, branch.queue[0] if branch.queue and branch.live is None else None
        case Open():
            return _open(state, branch, what)
        case Begin():
            return _begin(state, branch, what)
        case Finish():
            return _finish(state, branch, what)
        case Fork(at=at):
            if what.name in state.branches:
                return state, Refused("precondition", "name")
            return _leave(state, branch, branch.head if at is None else at, what.name, 0)
        case Rollback(to=to):
            if branch.live is not None:
                return state, Refused("precondition", "branch")
            return _leave(state, branch, to, what.branch, branch.epoch + 1)


def _open(state: Session, branch: Branch, what: Open) -> tuple[Session, object]:
    if what.key is not None and what.key in state.keys:
        known = state.keys[what.key]
        return state, (known, False, *state.turns[known].told)
    if what.expects and what.expects[0] != branch.head:
        return state, Refused("precondition", "expected_head")
    if branch.live is not None or branch.queue:
        return _wait(state, branch, what)
    if what.base != branch.place:
        return state, None
    turn = Turn(what.branch, what.owner, TurnStatus.RUNNING, branch.epoch + 1)
    return _new(state, what, replace(branch, live=what.turn, epoch=turn.epoch), turn)


def _wait(state: Session, branch: Branch, what: Open) -> tuple[Session, object]:
    if what.policy is OnConflict.REJECT:
        return state, Refused("precondition", "on_conflict")
    halt = _HALTS.get(what.policy)
    running = None if branch.live is None else state.turns[branch.live]
    if branch.live is not None and running is not None and halt is not None and running.halt is None:
        state = replace(state, turns={**state.turns, branch.live: replace(running, halt=halt)})
    queue = (*branch.queue, what.turn) if halt is None else (what.turn, *branch.queue)
    turn = Turn(what.branch, what.owner, TurnStatus.QUEUED, 0)
    return _new(state, what, replace(branch, queue=queue), turn)


def _new(state: Session, what: Open, branch: Branch, turn: Turn) -> tuple[Session, object]:
    keys = state.keys if what.key is None else {**state.keys, what.key: what.turn}
    turns = {**state.turns, what.turn: turn}
    after = replace(state, branches={**state.branches, what.branch: branch}, turns=turns, keys=keys)
    return after, (what.turn, True, *turn.told)


def _begin(state: Session, branch: Branch, what: Begin) -> tuple[Session, object]:
    if branch.live is not None or not branch.queue or branch.queue[0] != what.turn or what.base != branch.place:
        return state, None
    if state.turns[what.turn].owner != what.owner:
        return state, None
    turn = replace(state.turns[what.turn], status=TurnStatus.RUNNING, epoch=branch.epoch + 1)
    branch = replace(branch, live=what.turn, epoch=turn.epoch, queue=branch.queue[1:])
    turns = {**state.turns, what.turn: turn}
    return replace(state, branches={**state.branches, what.branch: branch}, turns=turns), turn.told


def _finish(state: Session, branch: Branch, what: Finish) -> tuple[Session, object]:
    turn = state.turns[what.turn]
    if (branch.live, branch.epoch) != (what.turn, what.epoch):
        again = (turn.status, turn.epoch) == (what.status, what.epoch)
        return state, None if again else Refused("stale", "turn")
    branch = replace(branch, live=None)
    if what.status is TurnStatus.COMMITTED:
        place = Place(branch.place.line, branch.place.depth + 1)
        turn, branch = replace(turn, place=place), replace(branch, place=place, past=(*branch.past, what.turn))
    turns = {**state.turns, what.turn: replace(turn, status=what.status)}
    return replace(state, branches={**state.branches, what.branch: branch}, turns=turns), None


def _leave(state: Session, branch: Branch, at: TurnId | None, name: str, epoch: int) -> tuple[Session, object]:
    """A branch `name` on a new line, after a turn of another one's past."""
    if at is not None and at not in branch.past:
        return state, Refused("not_found", "turn")
    past = () if at is None else branch.past[: branch.past.index(at) + 1]
    place = state.turns[at].place if at is not None else BEGINNING
    assert place is not None, "what is in a past has its place"
    queue = state.branches[name].queue if name in state.branches else ()
    made = Branch(Place(state.lines, place.depth), past, epoch, None, queue)
    return replace(state, lines=state.lines + 1, branches={**state.branches, name: made}), made.told


def _cancel(state: Session, what: Cancel) -> tuple[Session, object]:
    turn = state.turns.get(what.turn)
    if turn is None:
        return state, Refused("not_found", "turn")
    if turn.status in UNFINISHED and turn.halt is None:
        turn = replace(turn, halt=what.how)
    return replace(state, turns={**state.turns, what.turn: turn}), turn.told
