"""The simulation's checker over the stores of real meshes whose model is simulated."""

from runtime.config import Config
from runtime.errors import InvariantViolation
from runtime.mesh.checking.histories import Histories
from runtime.mesh.sessions import session_database
from runtime.mesh.simulated.checker import SimulatedOracle
from runtime.store.transaction import Transaction


async def judge(config: Config) -> int:
    """Raise the first `InvariantViolation` of a mesh's store, that nobody writes to now and whose sessions kept no KV
    while they were away. Gives how many turns it holds."""
    database, _ = session_database(config)
    violations: list[InvariantViolation] = []

    async def read(tx: Transaction) -> int:
        def violated(number: int, why: str) -> None:
            violations.append(InvariantViolation(number, why))

        await Histories(tx, SimulatedOracle(), {}, violated).judge()
        return int((await tx.rows("SELECT COUNT(*) FROM turns"))[0][0])

    await database.open()
    try:
        turns = await database.read(read)
    finally:
        await database.close()
    for violation in violations:
        raise violation
    return turns
