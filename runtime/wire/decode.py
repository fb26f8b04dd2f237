"""The stream between a gateway and a decode worker: commands one way, step batches the other. On the token path."""

from collections.abc import Iterable, Iterator

from batonmesh.v1 import worker_pb2 as pb
from runtime.domain.messages import (
    Acknowledge,
    Attach,
    AttemptFailed,
    CancelAttempt,
    GatewayCommand,
    Hello,
    Output,
    Paused,
    PrefillCandidate,
    Start,
    StepBatch,
)
from runtime.domain.mirroring import MAX_COPIES
from runtime.domain.retention import MAX_KEEP_MS
from runtime.domain.sequence import Sampled
from runtime.errors import InvalidArgument
from runtime.ids import BootId, GatewayId, SessionId, TenantId, WorkerId
from runtime.wire import fields
from runtime.wire.errors import pack_error, unpack_error
from runtime.wire.handoff import pack_handoff, unpack_handoff
from runtime.wire.mirroring import pack_holder, unpack_holders
from runtime.wire.retention import (
    PAUSES,
    pack_kept,
    pack_promise,
    pack_retention,
    unpack_kept,
    unpack_pause,
    unpack_promise,
    unpack_retention,
)
from runtime.wire.sequence import (
    TO_FINISH,
    pack_load,
    pack_ref,
    pack_sampling,
    pack_scores,
    pack_top,
    unpack_finish,
    unpack_load,
    unpack_logprobs,
    unpack_ref,
    unpack_sampling,
    unpack_scores,
    unpack_top,
)

_MAX_CANDIDATES = 64
_TOGETHER_BYTES = 1 << 20


def pack_commands(commands: Iterable[GatewayCommand]) -> Iterator[pb.DecodeCommand]:
    """In as few messages as keep them small; a long prompt has one of its own."""
    together: list[pb.DecodeCommand] = []
    size = 0
    for message in map(pack_command, commands):
        size += message.ByteSize()
        if together and size > _TOGETHER_BYTES:
            yield _as_one(together)
            together, size = [], message.ByteSize()
        together.append(message)
    if together:
        yield _as_one(together)


def _as_one(messages: list[pb.DecodeCommand]) -> pb.DecodeCommand:
    return messages[0] if len(messages) == 1 else pb.DecodeCommand(batch=pb.CommandBatch(commands=messages))


def unpack_commands(message: pb.DecodeCommand) -> Iterator[Hello | GatewayCommand]:
    """Raises `InvalidArgument` at the first that makes no sense; those before it stand."""
    if not message.HasField("batch"):
        yield unpack_command(message)
        return
    for each in message.batch.commands:
        if each.HasField("hello"):
            raise InvalidArgument("hello stands alone", field="command")
        yield unpack_command(each)


def pack_command(command: Hello | GatewayCommand) -> pb.DecodeCommand:
    match command:
        case Hello(gateway):
            return pb.DecodeCommand(hello=pb.Hello(gateway=gateway))
        case Start():
            return pb.DecodeCommand(start=_pack_start(command))
        case CancelAttempt(ref):
            return pb.DecodeCommand(cancel=pb.Cancel(ref=pack_ref(ref)))
        case Attach(ref, have):
            return pb.DecodeCommand(attach=pb.Attach(ref=pack_ref(ref), have=have))
        case Acknowledge(ref):
            return pb.DecodeCommand(acknowledge=pb.Acknowledge(ref=pack_ref(ref)))
        case Paused(ref, session, pause, keep_ms):
            paused = pb.Paused(ref=pack_ref(ref), session=session, pause=PAUSES[pause], keep_ms=keep_ms)
            return pb.DecodeCommand(paused=paused)


def unpack_command(message: pb.DecodeCommand) -> Hello | GatewayCommand:
    match message.WhichOneof("command"):
        case "hello":
            return Hello(GatewayId(fields.name(message.hello.gateway, "hello.gateway")))
        case "start":
            return _unpack_start(message.start)
        case "cancel":
            return CancelAttempt(unpack_ref(message.cancel.ref))
        case "attach":
            return Attach(unpack_ref(message.attach.ref), message.attach.have)
        case "acknowledge":
            return Acknowledge(unpack_ref(message.acknowledge.ref))
        case "paused":
            return _unpack_paused(message.paused)
        case _:
            raise InvalidArgument("command is absent, unknown, or a batch within a batch", field="command")


def _unpack_paused(message: pb.Paused) -> Paused:
    if message.keep_ms > MAX_KEEP_MS:
        raise InvalidArgument(f"keep_ms must be at most {MAX_KEEP_MS}, got {message.keep_ms}", field="keep_ms")
    session = SessionId(fields.name(message.session, "session", 64))
    return Paused(unpack_ref(message.ref), session, unpack_pause(message.pause, "pause"), message.keep_ms)


def _pack_start(start: Start) -> pb.Start:
    return pb.Start(
        ref=pack_ref(start.ref),
        tenant=start.tenant,
        prompt=start.prompt,
        sampling=pack_sampling(start.sampling),
        forced=start.forced,
        candidates=[
            pb.PrefillCandidate(worker=each.worker, boot=each.boot, address=each.address) for each in start.candidates
        ],
        remaining_ms=start.remaining_ms,
        priority=start.priority,
        session=start.session or "",
        remote_min_tokens=start.remote_min_tokens,
        holders=map(pack_holder, start.holders),
        copies=start.copies,
        mirrors=map(pack_holder, start.mirrors),
        retention=pack_retention(start.retention) if start.retention else None,
    )


def _unpack_start(message: pb.Start) -> Start:
    fields.at_most(_MAX_CANDIDATES, len(message.candidates), "candidates")
    fields.at_most(0, len(message.sampling.bad_words), "bad_words")
    if message.copies > MAX_COPIES:
        raise InvalidArgument(f"copies must be at most {MAX_COPIES}, got {message.copies}", field="copies")
    return Start(
        ref=unpack_ref(message.ref),
        tenant=TenantId(fields.name(message.tenant, "tenant")),
        prompt=fields.tokens(message.prompt, "prompt", least=1),
        sampling=unpack_sampling(message.sampling, max_tokens=0, seed=0),
        forced=fields.tokens(message.forced, "forced"),
        candidates=tuple(
            PrefillCandidate(
                WorkerId(fields.name(each.worker, "candidates.worker")),
                BootId(fields.name(each.boot, "candidates.boot")),
                fields.name(each.address, "candidates.address", 256),
            )
            for each in message.candidates
        ),
        remaining_ms=fields.at_least(1, message.remaining_ms, "remaining_ms"),
        priority=message.priority,
        session=fields.session(message.session),
        remote_min_tokens=message.remote_min_tokens if message.HasField("remote_min_tokens") else None,
        holders=unpack_holders(message.holders, "holders"),
        copies=message.copies,
        mirrors=unpack_holders(message.mirrors, "mirrors"),
        retention=unpack_retention(message.retention),
    )


def pack_batch(batch: StepBatch) -> pb.StepBatch:
    return pb.StepBatch(
        outputs=[_pack_output(output) for output in batch.outputs],
        load=None if batch.load is None else pack_load(batch.load),
        kept=[pack_kept(kept) for kept in batch.kept],
    )


def unpack_batch(message: pb.StepBatch) -> StepBatch:
    return StepBatch(
        tuple([_unpack_output(output) for output in message.outputs]),
        unpack_load(message.load) if message.HasField("load") else None,
        tuple([unpack_kept(kept) for kept in message.kept]),
    )


def _pack_output(output: Output | AttemptFailed) -> pb.Output:
    if isinstance(output, AttemptFailed):
        return pb.Output(ref=pack_ref(output.ref), failed=pack_error(output.error))
    message = pb.Output(
        ref=pack_ref(output.ref),
        index=output.index,
        tokens=[sampled.token for sampled in output.tokens],
        text=output.text,
        text_ends=output.ends,
    )
    if any(sampled.logprob for sampled in output.tokens):
        message.logprobs.extend([sampled.logprob for sampled in output.tokens])
    if any(sampled.top for sampled in output.tokens):
        message.top.extend([pack_top(sampled.top) for sampled in output.tokens])
    if output.finish is not None:
        message.finish = TO_FINISH[output.finish]
    if output.handoff is not None:
        message.handoff.CopyFrom(pack_handoff(output.handoff))
    if output.scores is not None:
        message.prompt_logprobs.CopyFrom(pack_scores(output.scores))
    if output.promise is not None:
        message.promise.CopyFrom(pack_promise(output.promise))
    return message


def _unpack_output(message: pb.Output) -> Output | AttemptFailed:
    ref = unpack_ref(message.ref)
    if message.HasField("failed"):
        return AttemptFailed(ref, unpack_error(message.failed))
    return Output(
        ref,
        message.index,
        _unpack_tokens(message),
        message.text,
        unpack_finish(message.finish, "finish") if message.HasField("finish") else None,
        unpack_handoff(message.handoff) if message.HasField("handoff") else None,
        unpack_scores(message.prompt_logprobs, "prompt_logprobs") if message.HasField("prompt_logprobs") else None,
        _unpack_ends(message),
        unpack_promise(message.promise) if message.HasField("promise") else None,
    )


def _unpack_ends(message: pb.Output) -> tuple[int, ...]:
    ends = tuple(message.text_ends)
    if ends and (
        len(ends) + 1 != len(message.tokens) or [*ends, len(message.text)] != sorted((*ends, len(message.text)))
    ):
        raise InvalidArgument("text_ends do not cut the text into one of each token", field="text_ends")
    return ends


def _unpack_tokens(message: pb.Output) -> tuple[Sampled, ...]:
    tokens = fields.tokens(message.tokens, "tokens")
    if not message.logprobs and not message.top:
        return tuple([Sampled(token) for token in tokens])
    logprobs = unpack_logprobs(message.logprobs, "logprobs") or (0.0,) * len(tokens)
    top = tuple([unpack_top(each, "top") for each in message.top]) or ((),) * len(tokens)
    for field, column in (("logprobs", logprobs), ("top", top)):
        if len(column) != len(tokens):
            raise InvalidArgument(f"{field} has {len(column)} entries for {len(tokens)} tokens", field=field)
    return tuple(map(Sampled, tokens, logprobs, top))
