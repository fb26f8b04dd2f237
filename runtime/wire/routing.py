"""What a placement was expected to cost, and how a prompt would be placed."""

from batonmesh.v1 import common_pb2 as common
from batonmesh.v1 import mesh_pb2 as pb
from runtime.domain.routing import Estimate, Explained, Reason
from runtime.errors import InvalidArgument
from runtime.ids import WorkerId
from runtime.wire import fields

_MAX_COSTS = 512
_REASONS = {reason.value: reason for reason in Reason}


def pack_cost(cost: Estimate) -> common.RouteCost:
    return common.RouteCost(
        worker=cost.worker,
        prefill_worker=cost.prefill,
        held_tokens=cost.held,
        prefill_held_tokens=cost.prefill_held,
        queue_ms=cost.queue_ms,
        prefill_ms=cost.prefill_ms,
        load_ms=cost.load_ms,
        load_tier=cost.load_tier,
        move_ms=cost.move_ms,
        wait_ms=cost.wait_ms,
        others_ms=cost.others_ms,
        decode_ms=cost.decode_ms,
    )


def unpack_cost(message: common.RouteCost) -> Estimate:
    prefill = message.prefill_worker if message.HasField("prefill_worker") else None
    return Estimate(
        worker=WorkerId(fields.name(message.worker, "route.worker")),
        prefill=None if prefill is None else WorkerId(fields.name(prefill, "route.prefill_worker")),
        held=message.held_tokens,
        prefill_held=message.prefill_held_tokens,
        queue_ms=fields.milliseconds(message.queue_ms, "route.queue_ms"),
        prefill_ms=fields.milliseconds(message.prefill_ms, "route.prefill_ms"),
        move_ms=fields.milliseconds(message.move_ms, "route.move_ms"),
        wait_ms=fields.milliseconds(message.wait_ms, "route.wait_ms"),
        others_ms=fields.milliseconds(message.others_ms, "route.others_ms"),
        decode_ms=fields.milliseconds(message.decode_ms, "route.decode_ms"),
        load_ms=fields.milliseconds(message.load_ms, "route.load_ms"),
        load_tier=fields.text(message.load_tier, "route.load_tier", 32),
    )


def pack_explained(prompt_tokens: int, explained: Explained) -> pb.ExplainRouteResponse:
    return pb.ExplainRouteResponse(
        prompt_tokens=prompt_tokens,
        worker=explained.worker,
        reason=explained.reason.value,
        costs=[pack_cost(cost) for cost in explained.costs[:_MAX_COSTS]],
    )


def unpack_explained(message: pb.ExplainRouteResponse) -> Explained:
    """Raises `InvalidArgument` for a reason that is not known here: its gateway is newer."""
    if message.reason not in _REASONS:
        raise InvalidArgument(f"reason must be one of {', '.join(_REASONS)}", field="reason")
    fields.at_most(_MAX_COSTS, len(message.costs), "costs")
    worker = WorkerId(fields.name(message.worker, "worker")) if message.HasField("worker") else None
    return Explained(worker, _REASONS[message.reason], tuple(map(unpack_cost, message.costs)))
