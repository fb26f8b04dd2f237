"""The secrets that keep tenants' pages apart. Owns where they are kept; never logs or prints one."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from runtime.ids import TenantId
from runtime.mesh.secret import open_secret

DEFAULT = TenantId("default")


def open_tenants(state: Path, names: Sequence[str]) -> Mapping[TenantId, bytes]:
    """The mesh's tenants and their secrets; one that is not there yet is made.

    Raises `StartError` when a file cannot be read or made, or holds something else.
    """
    return {
        TenantId(name): open_secret(state / f"tenant-{name}.secret", "mesh.state", "a tenant's secret")
        for name in names
    }
