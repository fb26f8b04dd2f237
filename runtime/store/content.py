"""Which tables hold what of a session: for whoever deletes, exports, takes in or audits all of it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    """A table with a column `session`. `key` names a row within its session, `sealed` are payloads, sealed under
    `name.column` and the key, `plain` the other columns. `shape` has a letter for each of `columns`: t text, i integer,
    l long integer, b bytes; a capital where it may be NULL."""

    name: str
    key: tuple[str, ...]
    plain: tuple[str, ...]
    sealed: tuple[str, ...]
    shape: str

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.key, *self.plain, *self.sealed)


LINES = Table("lines", ("line",), ("parent", "base"), (), "iIi")
BRANCHES = Table("branches", ("name",), ("line", "depth", "head", "tokens", "epoch", "live"), (), "tiiTiiT")
TURNS = Table(
    "turns",
    ("id",),
    (
        "branch",
        "status",
        "epoch",
        "owner",
        "place",
        "halt",
        "line",
        "depth",
        "context",
        "max_tokens",
        "drift",
        "hidden",
    ),
    ("asked", "prompt", "ending"),
    "tttitiTIIIIIibBb",
)
SEGMENTS = Table("segments", ("turn",), ("line", "depth", "total", "chain", "boot"), ("tokens",), "tiiibTb")
ITEMS = Table("items", ("turn", "number"), (), ("payload",), "tib")
EVENTS = Table("events", ("turn", "seq"), ("first",), ("tokens", "text"), "tiibb")
CALLS = Table(
    "calls", ("line", "turn", "number"), ("id", "state", "wait", "deadline"), ("payload", "result"), "itittLLbB"
)
TABLES = (LINES, BRANCHES, TURNS, SEGMENTS, ITEMS, EVENTS, CALLS)
OF_A_SESSION = ("session_keys", *(table.name for table in TABLES), "accounts", "notices")
