"""Workers and views: who belongs to the mesh."""

from batonmesh.v1 import mesh_pb2 as pb
from runtime.domain.membership import MAX_REFUSED
from runtime.domain.messages import Path, Refused, Traffic, View, Worker
from runtime.domain.routing import DECODE, PREFILL
from runtime.errors import InvalidArgument
from runtime.ids import BootId, WorkerId
from runtime.wire import fields
from runtime.wire.mirroring import pack_mirror, unpack_mirror
from runtime.wire.pages import pack_pages, unpack_pages
from runtime.wire.profile import pack_profile, unpack_profile
from runtime.wire.sequence import pack_load, unpack_load
from runtime.wire.tiers import pack_tier, unpack_tiers

_MAX_WORKERS = 65_536
_MAX_PATHS = 1024
_MAX_REASONS = 64
_ROLES = (PREFILL, DECODE)


def pack_view(view: View) -> pb.View:
    return pb.View(
        incarnation=view.incarnation,
        version=view.version,
        workers=[pack_worker(worker) for worker in view.workers],
        settling=view.settling,
        refused=[_pack_refused(refused) for refused in view.refused],
    )


def unpack_view(message: pb.View) -> View:
    fields.at_most(_MAX_WORKERS, len(message.workers), "view.workers")
    workers = tuple(unpack_worker(worker) for worker in message.workers)
    fields.at_most(MAX_REFUSED, len(message.refused), "view.refused")
    refused = tuple(_unpack_refused(each) for each in message.refused)
    return View(message.incarnation, message.version, workers, message.settling, refused)


def _pack_refused(refused: Refused) -> pb.RefusedWorker:
    return pb.RefusedWorker(worker=refused.worker, boot=refused.boot, field=refused.field, reason=refused.reason)


def _unpack_refused(message: pb.RefusedWorker) -> Refused:
    return Refused(
        WorkerId(fields.name(message.worker, "view.refused.worker")),
        BootId(fields.name(message.boot, "view.refused.boot")),
        fields.text(message.field, "view.refused.field", 256),
        fields.text(message.reason, "view.refused.reason", 4096),
    )


def pack_worker(worker: Worker) -> pb.Worker:
    return pb.Worker(
        id=worker.id,
        boot=worker.boot,
        role=worker.role,
        address=worker.address,
        model=worker.model,
        kv_fingerprint=worker.kv_fingerprint,
        serving_fingerprint=worker.serving_fingerprint,
        max_tokens=worker.max_tokens,
        page_tokens=worker.page_tokens,
        device=worker.device,
        load=None if worker.load is None else pack_load(worker.load),
        frame_version=worker.frame_version,
        draining=worker.draining,
        traffic=_pack_traffic(worker.traffic),
        tiers=map(pack_tier, worker.tiers),
        pages=pack_pages(worker.pages),
        profile=pack_profile(worker.profile),
        mirror=None if worker.mirror is None else pack_mirror(worker.mirror),
    )


def unpack_worker(message: pb.Worker) -> Worker:
    if message.role not in _ROLES:
        raise InvalidArgument(f"worker.role must be one of {', '.join(_ROLES)}", field="worker.role")
    return Worker(
        id=WorkerId(fields.name(message.id, "worker.id")),
        boot=BootId(fields.name(message.boot, "worker.boot")),
        role=message.role,
        address=fields.name(message.address, "worker.address", 256),
        model=fields.name(message.model, "worker.model", 256),
        kv_fingerprint=fields.fingerprint(message.kv_fingerprint, "worker.kv_fingerprint"),
        serving_fingerprint=fields.fingerprint(message.serving_fingerprint, "worker.serving_fingerprint"),
        max_tokens=fields.at_least(1, message.max_tokens, "worker.max_tokens"),
        page_tokens=fields.at_least(1, message.page_tokens, "worker.page_tokens"),
        device=fields.text(message.device, "worker.device", 256),
        load=unpack_load(message.load) if message.HasField("load") else None,
        frame_version=message.frame_version or 1,
        draining=message.draining,
        traffic=_unpack_traffic(message.traffic),
        tiers=unpack_tiers(message.tiers),
        pages=unpack_pages(message.pages),
        profile=unpack_profile(message.profile),
        mirror=unpack_mirror(message.mirror) if message.HasField("mirror") else None,
    )


def _pack_traffic(traffic: Traffic) -> pb.Traffic:
    paths = [
        pb.Path(
            boot=path.boot,
            transport=path.transport,
            reason=path.reason,
            transfers=path.transfers,
            bytes=path.bytes,
            busy_ms=path.busy_ms,
        )
        for path in traffic.paths
    ]
    return pb.Traffic(
        paths=paths, refused=dict(traffic.refused), prefill_ms=traffic.prefill_ms, exposed_ms=traffic.exposed_ms
    )


def _unpack_traffic(message: pb.Traffic) -> Traffic:
    fields.at_most(_MAX_PATHS, len(message.paths), "worker.traffic.paths")
    fields.at_most(_MAX_REASONS, len(message.refused), "worker.traffic.refused")
    refused = [(fields.text(name, "worker.traffic.refused", 64), count) for name, count in message.refused.items()]
    return Traffic(
        tuple(map(_unpack_path, message.paths)),
        tuple(sorted(refused)),
        fields.milliseconds(message.prefill_ms, "worker.traffic.prefill_ms"),
        fields.milliseconds(message.exposed_ms, "worker.traffic.exposed_ms"),
    )


def _unpack_path(message: pb.Path) -> Path:
    return Path(
        BootId(fields.name(message.boot, "worker.traffic.paths.boot")),
        fields.name(message.transport, "worker.traffic.paths.transport", 32),
        fields.text(message.reason, "worker.traffic.paths.reason", 512),
        message.transfers,
        message.bytes,
        fields.milliseconds(message.busy_ms, "worker.traffic.paths.busy_ms"),
    )
