"""How a worker's pages look, as it registers: data types and groups of layers."""

from collections.abc import Iterable

from batonmesh.v1 import mesh_pb2 as pb
from runtime.domain.messages import PageForm
from runtime.domain.spec import DTYPE_BYTES, Kind, LayerGroup
from runtime.errors import InvalidArgument
from runtime.wire import fields

_MAX_DTYPES = 16
_MAX_GROUPS = 256
_MAX_LAYERS = 4096
_MAX_SIZE = 65_535
_KINDS = {kind.value: kind for kind in Kind}


def pack_pages(pages: PageForm) -> pb.PageForm:
    groups = [
        pb.LayerGroup(
            kind=group.kind.value,
            layers=group.layers,
            heads=group.heads,
            head_dim=group.head_dim,
            window=group.window,
        )
        for group in pages.groups
    ]
    return pb.PageForm(dtype=pages.dtype, dtypes=pages.dtypes, groups=groups)


def unpack_pages(message: pb.PageForm) -> PageForm:
    """Raises `InvalidArgument` by the field, also for a kind of state that is no page."""
    fields.at_most(_MAX_GROUPS, len(message.groups), "worker.pages.groups")
    if message.dtype:
        unpack_dtypes([message.dtype], "worker.pages.dtype")
    groups = tuple(map(_unpack_group, message.groups))
    layers = [layer for group in groups for layer in group.layers]
    if len(set(layers)) < len(layers):
        raise InvalidArgument("worker.pages.groups name a layer twice", field="worker.pages.groups.layers")
    return PageForm(message.dtype, unpack_dtypes(message.dtypes, "worker.pages.dtypes"), groups)


def unpack_dtypes(names: Iterable[str], field: str) -> tuple[str, ...]:
    """Names of data types that pages can have."""
    found = tuple(names)
    fields.at_most(_MAX_DTYPES, len(found), field)
    for name in found:
        if name not in DTYPE_BYTES:
            raise InvalidArgument(f"{field} must be of {', '.join(DTYPE_BYTES)}, got {name[:64]!r}", field=field)
    return found


def _unpack_group(message: pb.LayerGroup) -> LayerGroup:
    where = "worker.pages.groups"
    kind = _KINDS.get(message.kind)
    if kind is None:
        raise InvalidArgument(
            f"{where}.kind must be one of {', '.join(_KINDS)}, got {message.kind[:64]!r}: a state that is not kept for "
            "each token, as of SSM layers, cannot be paged",
            field=f"{where}.kind",
        )
    fields.at_least(1, len(message.layers), f"{where}.layers")
    fields.at_most(_MAX_LAYERS, len(message.layers), f"{where}.layers")
    layers = tuple(message.layers)
    if list(layers) != sorted(set(layers)):
        raise InvalidArgument(f"{where}.layers must rise", field=f"{where}.layers")
    for name, value in (("heads", message.heads), ("head_dim", message.head_dim)):
        if not 1 <= value <= _MAX_SIZE:
            raise InvalidArgument(f"{where}.{name} must be 1 to {_MAX_SIZE}, got {value}", field=f"{where}.{name}")
    if kind is Kind.LATENT and message.heads != 1:
        raise InvalidArgument(f"{where}.heads of a latent must be 1, got {message.heads}", field=f"{where}.heads")
    return LayerGroup(layers, message.heads, message.head_dim, kind, message.window)
