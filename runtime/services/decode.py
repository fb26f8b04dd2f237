"""`batonmesh.v1.Decode`: one gateway's stream with a decode worker. Translates and delegates; decides nothing."""

import asyncio

import grpc

from batonmesh.v1 import worker_pb2 as pb
from batonmesh.v1 import worker_pb2_grpc
from runtime.domain.joining import joined
from runtime.domain.messages import Hello, StepBatch
from runtime.errors import BatonError, InvalidArgument, Unavailable
from runtime.pacing import let_others_run
from runtime.roles.decode import DecodeRole, Link
from runtime.services.guard import Context
from runtime.wire.decode import pack_batch, unpack_command, unpack_commands

_TOGETHER = 64


class DecodeService(worker_pb2_grpc.DecodeServicer):
    name = pb.DESCRIPTOR.services_by_name["Decode"].full_name

    def __init__(self, role: DecodeRole) -> None:
        self._role = role

    def add_to(self, server: grpc.aio.Server) -> None:
        worker_pb2_grpc.add_DecodeServicer_to_server(self, server)

    async def Attach(self, _requests: object, context: Context) -> None:  # type: ignore[override]  # as Guard says
        first = await context.read()
        hello = unpack_command(first) if isinstance(first, pb.DecodeCommand) else None
        if not isinstance(hello, Hello):
            raise InvalidArgument("the first command on a stream is hello", field="command")
        async with self._role.attach(hello.gateway) as link, asyncio.TaskGroup() as group:
            obeying = group.create_task(_obey(link, context))
            await _write(link, context)
            if not obeying.done():
                obeying.cancel()
                raise Unavailable("the gateway did not read what it was sent")
            if (error := obeying.result()) is not None:
                raise error


async def _write(link: Link, context: Context) -> None:
    """Until the link is closed. Batches that are ready together go out as one."""
    batches = aiter(link.batches())
    async for batch in batches:
        outputs, load, kept = [*batch.outputs], batch.load, batch.kept
        for _ in range(_TOGETHER):
            if not link.ready() or (more := await anext(batches, None)) is None:
                break
            outputs += more.outputs
            load = more.load
            kept += more.kept
        together = outputs if load is batch.load else joined(outputs)
        await context.write(pack_batch(StepBatch(tuple(together), load, kept)))
        await let_others_run()


async def _obey(link: Link, context: Context) -> BatonError | None:
    """Until the gateway ends its side. Returns what was wrong with a command, for raising it here would cancel a write
    halfway, and gRPC takes no status while one is."""
    try:
        while isinstance(message := await context.read(), pb.DecodeCommand):
            for command in unpack_commands(message):
                if isinstance(command, Hello):
                    raise InvalidArgument("hello comes only once on a stream", field="command")
                link.command(command)
    except BatonError as error:
        return error
    finally:
        link.close()
    return None
