"""What an erasure did, as messages."""

from batonmesh.v1 import session_pb2 as pb
from runtime.domain.erasure import Erasure


def pack_erasure(erasure: Erasure) -> pb.EraseResponse:
    store = pb.ErasureReceipt(store="sessions", done=erasure.scrubbed, erased=sum(erasure.rows.values()))
    workers = [
        pb.ErasureReceipt(
            store=each.worker,
            boot=each.boot,
            done=each.dropped is not None,
            erased=each.dropped or 0,
            shared=each.shared or 0,
        )
        for each in erasure.workers
    ]
    return pb.EraseResponse(erased_ms=erasure.at_ms, receipts=[store, *workers])
