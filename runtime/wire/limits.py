"""What a session may spend and has spent, as messages."""

from batonmesh.v1 import limits_pb2 as pb
from runtime.domain.spending import Amounts, Limits, Measure


def unpack_limits(message: pb.Limits) -> Limits:
    given = {each.value: getattr(message, each.value) for each in Measure if message.HasField(each.value)}
    limits = Limits(**given)
    limits.validate()
    return limits


def pack_limits(limits: Limits) -> pb.Limits:
    each = zip(Measure, limits.each, strict=True)
    return pb.Limits(**{measure.value: limit for measure, limit in each if limit is not None})


def pack_amounts(amounts: Amounts) -> pb.Spending:
    return pb.Spending(**{measure.value: getattr(amounts, measure) for measure in Measure})


def unpack_amounts(message: pb.Spending) -> Amounts:
    return Amounts(**{measure.value: getattr(message, measure.value) for measure in Measure})
