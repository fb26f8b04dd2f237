"""NIXL's own loop, to time transports against: writes of a page each from registered memory to registered memory."""

import os
import threading
import time

from runtime.kv.transport.nixl.library import IN_FLIGHT, Agent, Handle, library
from runtime.kv.transport.nixl.memory import Memory
from runtime.kv.transport.nixl.receiving import WINDOW_BYTES
from runtime.kv.transport.timing.plan import RawTarget

BACKEND = "UCX"
_MEMORY_BYTES = 64 << 20
_CONNECTED_S = 10.0
_IDLE_S = 0.005
_BEGIN, _END = b"begin", b"end"


class _Ready:
    """An agent with its memory, which is registered."""

    def __init__(self, page_bytes: int) -> None:
        self.name = f"{type(self).__name__}:{os.getpid()}"
        self.agent: Agent = library().agent(self.name, BACKEND)
        self.memory = Memory(_MEMORY_BYTES // page_bytes, page_bytes)
        region = self.memory.region
        self.registration: Handle = self.agent.register_memory(
            [(region.address, region.bytes, region.device, "")], mem_type=region.memory
        )

    def close(self) -> None:
        self.agent.deregister_memory(self.registration)
        del self.agent
        self.memory.close()


class BareTarget(_Ready):
    """Looks without a pause as long as a source says that it writes: nothing lands unless somebody looks."""

    def __init__(self, page_bytes: int) -> None:
        super().__init__(page_bytes)
        self._over = False
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over = True
        self._thread.join()
        super().close()

    def _look(self) -> None:
        pause = _IDLE_S
        while not self._over:
            for words in self.agent.get_new_notifs().values():
                pause = 0.0 if words[-1] == _BEGIN else _IDLE_S
            time.sleep(pause)

    def described(self) -> RawTarget:
        metadata = self.agent.get_partial_agent_metadata(self.registration, inc_conn_info=True, backends=[BACKEND])
        region = self.memory.region
        return RawTarget(self.name, metadata.hex(), region.address)


class BareSource(_Ready):
    def __init__(self, page_bytes: int, target: RawTarget) -> None:
        super().__init__(page_bytes)
        self._page_bytes = page_bytes
        self._target = target
        self.agent.add_remote_agent(bytes.fromhex(target.metadata))
        self.agent.make_connection(target.agent)

    def move(self, pages: int) -> None:
        """Returns when all of them are there. As many are in flight as a ticket of ours may have."""
        self.agent.send_notif(self._target.agent, _BEGIN)
        places, window = self.memory.slots, max(WINDOW_BYTES // self._page_bytes, 1)
        flying: list[Handle] = []
        for number in range(pages):
            while len(flying) >= window:
                flying = self._still(flying)
            flying.append(self._posted(number % places * self._page_bytes))
        ends = time.monotonic() + _CONNECTED_S
        while flying and time.monotonic() < ends:
            flying = self._still(flying)
        self.agent.send_notif(self._target.agent, _END)

    def _posted(self, offset: int) -> Handle:
        agent, here = self.agent, self.memory.region
        handle = agent.initialize_xfer(
            "WRITE",
            agent.get_xfer_descs([(here.address + offset, self._page_bytes, 0)], mem_type=here.memory),
            agent.get_xfer_descs([(self._target.address + offset, self._page_bytes, 0)], mem_type=here.memory),
            self._target.agent,
        )
        agent.transfer(handle)
        return handle

    def _still(self, flying: list[Handle]) -> list[Handle]:
        """Those of them that are in flight."""
        still = []
        for handle in flying:
            if self.agent.check_xfer_state(handle) == IN_FLIGHT:
                still.append(handle)
            else:
                self.agent.release_xfer_handle(handle)
        return still
