"""The NIXL that is installed, and what is used of it. Finds the wheel; never starts anything by itself.

UCX and libfabric read their settings (`UCX_TLS`, `UCX_NET_DEVICES`, `FI_PROVIDER`) from the environment themselves.
"""

import logging
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from runtime.errors import Unavailable

# A wheel for each CUDA; either also serves hosts without a GPU.
_PACKAGES = ("nixl_cu12", "nixl_cu13")
DONE = "DONE"
IN_FLIGHT = "PROC"
Handle = Any
"""What NIXL gives out and takes back, of a type of its own."""
Pieces = list[tuple[int, int, int]]
"""Address, bytes, device."""


class Agent(Protocol):
    """`nixl_agent`, as far as it is used."""

    def create_backend(self, backend: str, initParams: dict[str, str]) -> None: ...
    def get_backend_mem_types(self, backend: str) -> list[Any]: ...
    def register_memory(self, reg_list: list[tuple[int, int, int, str]], mem_type: str) -> Handle: ...
    def deregister_memory(self, dereg_list: Handle) -> None: ...
    def get_partial_agent_metadata(self, descs: Handle, inc_conn_info: bool, backends: list[str]) -> bytes: ...
    def add_remote_agent(self, metadata: bytes) -> bytes | str: ...
    def remove_remote_agent(self, agent: str) -> None: ...
    def make_connection(self, remote_agent: str) -> None: ...
    def get_xfer_descs(self, descs: Pieces, mem_type: str) -> Handle: ...
    def initialize_xfer(
        self, operation: str, local_descs: Handle, remote_descs: Handle, remote_agent: str
    ) -> Handle: ...
    def transfer(self, handle: Handle) -> str: ...
    def get_new_notifs(self) -> dict[bytes, list[bytes]]: ...
    def send_notif(self, remote_agent_name: str, notif_msg: bytes) -> None: ...
    def check_xfer_state(self, handle: Handle) -> str: ...
    def release_xfer_handle(self, handle: Handle) -> None: ...


@dataclass(frozen=True, slots=True)
class Library:
    """`errors` are all that calls of an agent raise."""

    api: Any
    errors: tuple[type[Exception], ...]

    def agent(self, name: str, backend: str) -> Agent:
        """An agent with one backend. It gets on only while it is called: NIXL's own thread for that would never sleep.
        Raises `Unavailable` when the backend does not start."""
        try:
            agent: Agent = self.api.nixl_agent(name, self.api.nixl_agent_config(enable_prog_thread=False, backends=[]))
            agent.create_backend(backend, {})
        except self.errors as error:
            raise Unavailable(f"NIXL's backend {backend} does not start here: {error}") from error
        return agent


def _log_with_us() -> None:
    """Its loggers would write to standard output, which is ours."""
    log = logging.getLogger("nixl")
    log.handlers.clear()
    log.propagate = True
    log.setLevel(logging.WARNING)


def library() -> Library:
    """Raises `Unavailable` when there is none."""
    for package in _PACKAGES:
        try:
            api, bindings = import_module(f"{package}._api"), import_module(f"{package}._bindings")
        except ModuleNotFoundError:
            continue
        except ImportError as error:
            raise Unavailable(f"NIXL does not load: {error}") from error
        _log_with_us()
        kinds = [kind for kind in vars(bindings).values() if isinstance(kind, type) and issubclass(kind, Exception)]
        return Library(api, (*kinds, RuntimeError))
    raise Unavailable("NIXL is not installed")
