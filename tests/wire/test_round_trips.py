"""Whatever processes say to each other arrives as it was said, through the very bytes that travel."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from batonmesh.v1 import mesh_pb2, worker_pb2
from runtime.domain.messages import (
    AttemptFailed,
    GatewayCommand,
    Hello,
    Output,
    PrefillCall,
    PrefillDone,
    Start,
    StepBatch,
    View,
    Worker,
)
from runtime.domain.sequence import Ref, Sampling
from runtime.errors import BatonError
from runtime.ids import TenantId, TurnId
from runtime.wire.decode import pack_batch, pack_command, pack_commands, unpack_batch, unpack_command, unpack_commands
from runtime.wire.handoff import pack_prefill_call, pack_prefill_done, unpack_prefill_call, unpack_prefill_done
from runtime.wire.mesh import pack_view, pack_worker, unpack_view, unpack_worker
from tests.wire import words


@given(words.COMMANDS)
def test_commands(command: Hello | GatewayCommand) -> None:
    sent = pack_command(command).SerializeToString()
    assert unpack_command(worker_pb2.DecodeCommand.FromString(sent)) == command


@given(st.lists(words.STARTS, max_size=20))
def test_commands_that_go_together_are_one_message(commands: list[Start]) -> None:
    sent = [message.SerializeToString() for message in pack_commands(commands)]
    assert len(sent) == min(len(commands), 1)
    assert received(sent) == commands


def test_long_prompts_do_not_go_together() -> None:
    short = Start(Ref(TurnId("turn"), 1, 1), TenantId("default"), (1, 2), Sampling(1), remaining_ms=1)
    long = replace(short, prompt=(1 << 20,) * 400_000)
    commands = [short, long, long, short]
    sent = [message.SerializeToString() for message in pack_commands(commands)]
    assert [len(each) >> 20 for each in sent] == [0, 1, 1, 0]
    assert received(sent) == commands


def received(sent: list[bytes]) -> list[Hello | GatewayCommand]:
    return [command for each in sent for command in unpack_commands(worker_pb2.DecodeCommand.FromString(each))]


@given(words.BATCHES)
def test_step_batches(batch: StepBatch) -> None:
    sent = pack_batch(batch).SerializeToString()
    assert unpack_batch(worker_pb2.StepBatch.FromString(sent)) == batch


@given(words.OUTPUTS, words.REFS, words.ERRORS)
def test_a_failed_attempt_keeps_its_place_among_the_outputs(output: Output, ref: Ref, error: BatonError) -> None:
    sent = pack_batch(StepBatch((output, AttemptFailed(ref, error), output))).SerializeToString()
    before, failed, after = unpack_batch(worker_pb2.StepBatch.FromString(sent)).outputs
    assert before == after == output
    assert isinstance(failed, AttemptFailed)
    assert failed.ref == ref
    assert words.same(failed.error, error)


@given(words.PREFILL_CALLS)
def test_prefill_calls_with_their_tickets(call: PrefillCall) -> None:
    sent = pack_prefill_call(call).SerializeToString()
    assert unpack_prefill_call(worker_pb2.PrefillRequest.FromString(sent)) == call


@given(words.PREFILLS_DONE)
def test_prefill_reports(done: PrefillDone) -> None:
    sent = pack_prefill_done(done).SerializeToString()
    assert unpack_prefill_done(worker_pb2.PrefillResponse.FromString(sent)) == done


@given(words.WORKERS)
def test_workers(worker: Worker) -> None:
    sent = pack_worker(worker).SerializeToString()
    assert unpack_worker(mesh_pb2.Worker.FromString(sent)) == worker


@given(words.VIEWS)
def test_views(view: View) -> None:
    sent = pack_view(view).SerializeToString()
    assert unpack_view(mesh_pb2.View.FromString(sent)) == view
