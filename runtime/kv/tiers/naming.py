"""How pages are named in a store: after what is in them, with what they continue, and beside them who has used them.

    <model>/<aa>/<page>-<parent>             a sealed page
    <model>/<aa>/<page>-<parent>.<reader>    a mark, empty: this session has used the page, or is about to write it

`<model>` names all that makes pages interchangeable, `<aa>` is the page's first byte. Whoever writes a page writes the
same; a listing alone tells which pages are found through which, and whose they are. A page that only requests without a
session have used has no mark.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from runtime.domain.pages import ROOT
from runtime.domain.readers import Reader
from runtime.domain.spec import ModelSpec
from runtime.domain.tiers import Stored
from runtime.ids import PageId
from runtime.kv.frames import VERSION
from runtime.kv.tiers.objects import Listed

_NO_PARENT = "0"


def model_prefix(spec: ModelSpec) -> str:
    return f"{spec.kv_fingerprint}-{spec.dtype}-{spec.page_tokens}-v{VERSION}"


def page_name(prefix: str, page: PageId, parent: PageId) -> str:
    return f"{prefix}/{page[:1].hex()}/{page.hex()}-{parent.hex() or _NO_PARENT}"


def mark_name(name: str, reader: Reader) -> str:
    """Beside the page of this name."""
    return f"{name}.{reader}"


@dataclass(slots=True)
class Entry:
    """What a listing has under the name of one page: the page, unless only marks of it are there, and who is marked,
    with when that was, on the store's clock."""

    name: str
    model: str
    stored: Stored | None = None
    marks: dict[Reader, float] = field(default_factory=dict)

    def names(self) -> Iterator[str]:
        """Of all its objects, the page first."""
        yield self.name
        yield from (mark_name(self.name, reader) for reader in self.marks)


def entries(listed: Iterable[Listed], ours: str) -> dict[PageId, Entry]:
    """By page. In another data type a page has the same id: so those of other models than `ours` have more of a name
    here. What is no page is left out."""
    found: dict[PageId, Entry] = {}
    for each in listed:
        name, _, reader = each.name.partition(".")
        model, _, rest = name.partition("/")
        page, _, parent = rest.rpartition("/")[2].partition("-")
        other = b"" if model == ours else model.encode()
        try:
            known = PageId(other + bytes.fromhex(page))
            before = ROOT if parent == _NO_PARENT else PageId(other + bytes.fromhex(parent))
        except ValueError:
            continue
        entry = found.setdefault(known, Entry(name, model))
        if reader:
            entry.marks[Reader(reader)] = each.modified
        else:
            entry.stored = Stored(known, before, each.size, each.modified)
    return found
