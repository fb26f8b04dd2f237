"""The names of things, as types of their own. Owns how fresh ones are made; never parses their content."""

import random
from typing import NewType

SessionId = NewType("SessionId", str)
TurnId = NewType("TurnId", str)
SequenceId = NewType("SequenceId", str)
WorkerId = NewType("WorkerId", str)
BootId = NewType("BootId", str)
GatewayId = NewType("GatewayId", str)
TransferId = NewType("TransferId", str)
TenantId = NewType("TenantId", str)
PageId = NewType("PageId", bytes)


class Ids:
    """Makes fresh ids from a given source of randomness, so that a simulation can repeat them.

    A process passes `random.SystemRandom()`; ids have 64 random bits and a prefix that tells a reader what they name.
    """

    def __init__(self, source: random.Random) -> None:
        self._source = source

    def _fresh(self, prefix: str) -> str:
        return f"{prefix}-{self._source.getrandbits(64):016x}"

    def turn(self) -> TurnId:
        return TurnId(self._fresh("turn"))

    def session(self) -> SessionId:
        return SessionId(self._fresh("sess"))

    def boot(self) -> BootId:
        return BootId(self._fresh("boot"))

    def gateway(self) -> GatewayId:
        return GatewayId(self._fresh("gw"))

    def transfer(self) -> TransferId:
        return TransferId(self._fresh("xfer"))

    def seed(self) -> int:
        """A sampling seed for a request that brought none: 63 bits, so that it fits every signed wire field."""
        return self._source.getrandbits(63)
