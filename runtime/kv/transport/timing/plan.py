"""What transports are timed with: pages of a size, and the names of what a receiver listens with."""

from dataclasses import dataclass
from typing import Any

from runtime.domain.spec import ModelSpec
from runtime.domain.steps import Frame
from runtime.ids import PageId
from runtime.kv.frames import FrameCodec

_TOKEN_BYTES = 16 << 10
# So many different payloads take turns that none of them is in a cache when it is sent again.
_PAYLOAD_BYTES = 64 << 20
RAW_METHOD = "/baton.timing/Raw"
NIXL_AGENT = "timing:receiver"


def spec_of(page_bytes: int) -> ModelSpec:
    """A model whose pages have so many bytes, a multiple of 16 KiB."""
    tokens, rest = divmod(page_bytes, _TOKEN_BYTES)
    assert tokens > 0 == rest, page_bytes
    return ModelSpec(
        name="timing",
        layers=8,
        kv_heads=8,
        head_dim=64,
        dtype="bfloat16",
        vocab=1,
        max_tokens=tokens,
        page_tokens=tokens,
        kv_fingerprint="00" * 16,
        serving_fingerprint="00" * 16,
    )


class Unverified(FrameCodec):
    """Frames whose checksum nobody computes: what moving alone costs. Never used to serve."""

    def digest(self, fields: bytes | memoryview, payload: bytes | memoryview) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class RawTarget:
    """Memory that NIXL may be used to write into: what connecting to it takes, `metadata` in hexadecimal digits."""

    agent: str
    metadata: str
    address: int


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a receiver listens, by protocol, and its process."""

    pid: int
    tcp: int
    grpc: str
    shm: str
    shm_unverified: str
    nixl: RawTarget | None


def read_listening(told: dict[str, Any]) -> Listening:
    """What `asdict` made of one, back."""
    nixl = told["nixl"]
    return Listening(**told | {"nixl": None if nixl is None else RawTarget(**nixl)})


def payloads(page_bytes: int) -> list[bytes]:
    return [bytes([number % 251]) * page_bytes for number in range(max(_PAYLOAD_BYTES // page_bytes, 1))]


def frames(spec: ModelSpec) -> list[Frame]:
    return [
        Frame(PageId(index.to_bytes(16)), index, spec.page_tokens, payload)
        for index, payload in enumerate(payloads(spec.page_bytes))
    ]
