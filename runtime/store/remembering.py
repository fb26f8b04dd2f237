"""What came of requests under their idempotency keys (invariant 4)."""

from runtime.domain.sessions import Key
from runtime.ids import TenantId
from runtime.store.transaction import Transaction

_REPLACING = " ON CONFLICT (scope, name) DO UPDATE SET digest = $3, result = $4, at = now_ms()"


def of_tenant(tenant: TenantId) -> str:
    """The scope of keys that belong to no session."""
    return f"tenant/{tenant}"


async def remember(tx: Transaction, scope: str, key: Key | None, result: str) -> None:
    if key is not None:
        await tx.run(
            "INSERT INTO keys (scope, name, digest, result, at) VALUES ($1, $2, $3, $4, now_ms())"
            + (_REPLACING if key.first or key.window_s is not None else ""),
            scope,
            key.name,
            key.digest,
            result,
        )
