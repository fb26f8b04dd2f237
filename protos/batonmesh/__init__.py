"""The thin client of a Baton mesh.

from batonmesh import Client

with Client("localhost:50051") as mesh:
    for event in mesh.generate("recall", [{"role": "user", "content": "Hello."}], max_tokens=64):
        print(event.text, end="", flush=True)
"""

from batonmesh.async_client import AsyncClient, AsyncStream
from batonmesh.async_sessions import AsyncSessions, AsyncTurnStream
from batonmesh.client import Client, Stream
from batonmesh.credentials import Credentials
from batonmesh.errors import (
    BatonError,
    BudgetSpent,
    Cancelled,
    ContextExceeded,
    DataCorrupt,
    DeadlineExceeded,
    EngineFailed,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    NotSupported,
    PermissionDenied,
    Poison,
    ResourceExhausted,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from batonmesh.messages import Answer, Choice, Event, Options, Prompt
from batonmesh.sessions import Sessions, TurnStream
from batonmesh.turns import TurnAnswer, TurnOptions
from batonmesh.watching import AsyncWatch, Watch

__all__ = [
    "Answer",
    "AsyncClient",
    "AsyncSessions",
    "AsyncStream",
    "AsyncTurnStream",
    "AsyncWatch",
    "BatonError",
    "BudgetSpent",
    "Cancelled",
    "Choice",
    "Client",
    "ContextExceeded",
    "Credentials",
    "DataCorrupt",
    "DeadlineExceeded",
    "EngineFailed",
    "Event",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "NotSupported",
    "Options",
    "PermissionDenied",
    "Poison",
    "Prompt",
    "ResourceExhausted",
    "Sessions",
    "Stream",
    "TooLarge",
    "TurnAnswer",
    "TurnOptions",
    "TurnStream",
    "Unauthenticated",
    "Unavailable",
    "Watch",
]
