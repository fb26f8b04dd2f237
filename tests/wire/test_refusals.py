"""What is malformed is refused by the name of its field, and never with a traceback."""

import math
from collections.abc import Callable

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from batonmesh.v1 import common_pb2, inference_pb2, kv_pb2, mesh_pb2, worker_pb2
from runtime.domain.messages import Start
from runtime.errors import BatonError, InvalidArgument, TooLarge
from runtime.wire.decode import unpack_batch, unpack_command, unpack_commands
from runtime.wire.handoff import unpack_prefill_call, unpack_ticket
from runtime.wire.inference import MAX_TEXT_BYTES, unpack_prompt
from runtime.wire.mesh import unpack_view, unpack_worker
from runtime.wire.pages import unpack_pages
from runtime.wire.sequence import unpack_sampling


def sampling(**fields: object) -> None:
    unpack_sampling(common_pb2.Sampling(**fields), max_tokens=16, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("seed", -1),
        ("stop", [""]),
        ("stop", ["x"] * 17),
        ("stop", ["x" * 1025]),
        ("stop_token_ids", [2**31]),
        ("stop_token_ids", [1] * 257),
        ("logprobs", -1),
        ("logprobs", 21),
        ("prompt_logprobs", -1),
        ("prompt_logprobs", 21),
        ("min_p", math.nan),
        ("typical_p", 0.0),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.nan),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -math.inf),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", dict.fromkeys(range(1025), 1.0)),
        ("min_tokens", 17),
        ("min_tokens", -1),
        ("grammar", common_pb2.Grammar()),
        ("grammar", common_pb2.Grammar(regex="")),
        ("grammar", common_pb2.Grammar(regex="x" * 16_385)),
        ("grammar", common_pb2.Grammar(choice=common_pb2.Choices())),
        ("grammar", common_pb2.Grammar(choice=common_pb2.Choices(texts=["x"] * 1025))),
        ("grammar", common_pb2.Grammar(choice=common_pb2.Choices(texts=["x" * 16_385]))),
        ("banned_tokens", [common_pb2.TokenIds()]),
        ("banned_tokens", [common_pb2.TokenIds(ids=[1])] * 257),
        ("banned_tokens", [common_pb2.TokenIds(ids=range(65))]),
        ("banned_tokens", [common_pb2.TokenIds(ids=[2**31])]),
    ],
)
def test_sampling_out_of_range(field: str, value: object) -> None:
    with pytest.raises(InvalidArgument) as refused:
        sampling(**{field: value})
    assert refused.value.field == field
    assert field in refused.value.message


def test_absent_sampling_fields_have_their_defaults_and_zero_is_not_absent() -> None:
    defaults = unpack_sampling(common_pb2.Sampling(), max_tokens=9, seed=7)
    assert (defaults.max_tokens, defaults.temperature, defaults.top_p, defaults.seed, defaults.logprobs) == (
        9, 1.0, 1.0, 7, None,
    )  # fmt: skip
    zeros = unpack_sampling(common_pb2.Sampling(temperature=0, seed=0, logprobs=0), max_tokens=9, seed=7)
    assert (zeros.temperature, zeros.seed, zeros.logprobs) == (0.0, 0, 0)


def ref() -> common_pb2.Ref:
    return common_pb2.Ref(turn="turn-1", epoch=1, attempt=1)


def start(**changes: object) -> worker_pb2.DecodeCommand:
    fields = {
        "ref": ref(), "tenant": "default", "prompt": [1, 2], "sampling": {"max_tokens": 1}, "remaining_ms": 1,
    } | changes  # fmt: skip
    return worker_pb2.DecodeCommand(start=worker_pb2.Start(**fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "command"),
    [
        ("command", worker_pb2.DecodeCommand()),
        ("hello.gateway", worker_pb2.DecodeCommand(hello=worker_pb2.Hello())),
        ("ref.turn", worker_pb2.DecodeCommand(cancel=worker_pb2.Cancel())),
        ("ref.turn", start(ref={"turn": "x" * 129, "epoch": 1, "attempt": 1})),
        ("ref.epoch", start(ref={"turn": "x", "attempt": 1})),
        ("ref.attempt", start(ref={"turn": "x", "epoch": 1})),
        ("tenant", start(tenant="")),
        ("prompt", start(prompt=[])),
        ("prompt", start(prompt=[2**31])),
        ("forced", start(forced=[2**32 - 1])),
        ("max_tokens", start(sampling={})),
        ("bad_words", start(sampling={"max_tokens": 1, "bad_words": ["x"]})),
        ("remaining_ms", start(remaining_ms=0)),
        ("candidates", start(candidates=[{"worker": "w", "boot": "b", "address": "a"}] * 65)),
        ("candidates.address", start(candidates=[{"worker": "w", "boot": "b"}])),
    ],
)
def test_commands(field: str, command: worker_pb2.DecodeCommand) -> None:
    with pytest.raises(InvalidArgument) as refused:
        unpack_command(command)
    assert refused.value.field == field


@pytest.mark.parametrize(
    "second",
    [
        worker_pb2.DecodeCommand(hello=worker_pb2.Hello(gateway="gw")),
        worker_pb2.DecodeCommand(batch=worker_pb2.CommandBatch(commands=[start()])),
        worker_pb2.DecodeCommand(),
    ],
)
def test_a_batch_of_commands_is_good_up_to_the_first_that_makes_no_sense(second: worker_pb2.DecodeCommand) -> None:
    batch = worker_pb2.DecodeCommand(batch=worker_pb2.CommandBatch(commands=[start(), second, start()]))
    commands = unpack_commands(batch)
    assert isinstance(next(commands), Start)
    with pytest.raises(InvalidArgument) as refused:
        next(commands)
    assert refused.value.field == "command"


def output(**changes: object) -> worker_pb2.StepBatch:
    return worker_pb2.StepBatch(outputs=[worker_pb2.Output(**({"ref": ref(), "tokens": [1, 2]} | changes))])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "batch"),
    [
        ("tokens", output(tokens=[2**31])),
        ("logprobs", output(logprobs=[-1.0])),
        ("logprobs", output(logprobs=[-1.0, math.nan])),
        ("logprobs", output(logprobs=[-1.0, math.inf])),
        ("top", output(top=[{"ids": [1], "logprobs": [-1.0]}])),
        ("top", output(top=[{"ids": [1], "logprobs": []}, {}])),
        ("top", output(top=[{"ids": [1] * 21, "logprobs": [-1.0] * 21}, {}])),
        ("prompt_logprobs", output(prompt_logprobs={"logprobs": [-1.0]})),
        ("prompt_logprobs", output(prompt_logprobs={"logprobs": [math.nan], "ranks": [1]})),
        ("prompt_logprobs", output(prompt_logprobs={"top": 21})),
        ("prompt_logprobs", output(prompt_logprobs={"logprobs": [-1.0], "ranks": [1], "top": 2, "top_ids": [1, 2]})),
        ("prompt_logprobs", output(prompt_logprobs={"logprobs": [-1.0] * 65_537, "ranks": [1] * 65_537})),
        ("finish", output(finish=common_pb2.FINISH_REASON_UNSPECIFIED)),
        ("handoff.wait_ms", output(handoff={"wait_ms": math.nan})),
        ("handoff.transfer_ms", output(handoff={"transfer_ms": -1.0})),
        ("handoff.exposed_ms", output(handoff={"exposed_ms": float("nan")})),
    ],
)
def test_step_batches(field: str, batch: worker_pb2.StepBatch) -> None:
    with pytest.raises(InvalidArgument) as refused:
        unpack_batch(batch)
    assert refused.value.field == field


def ticket(**changes: object) -> kv_pb2.Ticket:
    page = {"index": 3, "id": bytes(16), "valid_tokens": 32}
    fields = {
        "transfer": "xfer-1", "epoch": 1, "boot": "boot-1", "transport": "grpc", "endpoint": "host:1",
        "fingerprint": "0f" * 16, "dtype": "float32", "pages": [page], "remaining_ms": 1,
    } | changes  # fmt: skip
    return kv_pb2.Ticket(**fields)  # type: ignore[arg-type]


def test_the_ticket_that_the_refusals_vary_is_good() -> None:
    assert unpack_ticket(ticket()).pages[0].index == 3


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("ticket.transfer", {"transfer": ""}),
        ("ticket.epoch", {"epoch": 0}),
        ("ticket.boot", {"boot": ""}),
        ("ticket.transport", {"transport": "x" * 33}),
        ("ticket.endpoint", {"endpoint": ""}),
        ("ticket.fingerprint", {"fingerprint": "0F" * 16}),
        ("ticket.fingerprint", {"fingerprint": "0f" * 15}),
        ("ticket.dtype", {"dtype": "float8"}),
        ("ticket.dtypes", {"dtypes": ["bfloat16", "float8"]}),
        ("ticket.dtypes", {"dtypes": ["float16"] * 17}),
        ("ticket.pages", {"pages": []}),
        ("ticket.pages.id", {"pages": [{"index": 1, "id": bytes(15), "valid_tokens": 1}]}),
        ("ticket.pages.valid_tokens", {"pages": [{"index": 1, "id": bytes(16)}]}),
        ("ticket.pages.index", {"pages": [{"index": 1, "id": bytes(16), "valid_tokens": 1}] * 2}),
        ("ticket.remaining_ms", {"remaining_ms": 0}),
    ],
)
def test_tickets(field: str, changes: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument) as refused:
        unpack_ticket(ticket(**changes))
    assert refused.value.field == field


GROUP = {"kind": "kv", "layers": [0, 2], "heads": 8, "head_dim": 64}


def test_a_state_that_cannot_be_paged_is_refused_by_its_kind() -> None:
    message = mesh_pb2.PageForm(groups=[GROUP | {"kind": "ssm"}])  # type: ignore[list-item]  # protobuf takes mappings
    with pytest.raises(InvalidArgument, match=r"got 'ssm'.*cannot be paged"):
        unpack_pages(message)


def test_a_prefill_of_less_than_two_tokens_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="at least 2"):
        unpack_prefill_call(worker_pb2.PrefillRequest(tenant="default", tokens=[1], ticket=ticket()))


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("worker.id", {"id": ""}),
        ("worker.boot", {"boot": "x" * 129}),
        ("worker.role", {"role": "router"}),
        ("worker.address", {"address": ""}),
        ("worker.model", {"model": ""}),
        ("worker.kv_fingerprint", {"kv_fingerprint": "x"}),
        ("worker.serving_fingerprint", {"serving_fingerprint": ""}),
        ("worker.max_tokens", {"max_tokens": 0}),
        ("worker.page_tokens", {"page_tokens": 0}),
        ("worker.device", {"device": "x" * 257}),
        ("worker.pages.dtype", {"pages": {"dtype": "float8"}}),
        ("worker.pages.dtypes", {"pages": {"dtypes": ["float64"]}}),
        ("worker.pages.groups", {"pages": {"groups": [GROUP] * 257}}),
        ("worker.pages.groups.kind", {"pages": {"groups": [GROUP | {"kind": "ssm"}]}}),
        ("worker.pages.groups.layers", {"pages": {"groups": [GROUP | {"layers": []}]}}),
        ("worker.pages.groups.layers", {"pages": {"groups": [GROUP | {"layers": [1, 0]}]}}),
        ("worker.pages.groups.layers", {"pages": {"groups": [GROUP] * 2}}),
        ("worker.pages.groups.heads", {"pages": {"groups": [GROUP | {"heads": 0}]}}),
        ("worker.pages.groups.heads", {"pages": {"groups": [GROUP | {"kind": "latent"}]}}),
        ("worker.pages.groups.head_dim", {"pages": {"groups": [GROUP | {"head_dim": 65_536}]}}),
    ],
)
def test_workers(field: str, changes: dict[str, object]) -> None:
    fields = {
        "id": "decode-0", "boot": "boot-1", "role": "decode", "address": "host:1", "model": "m",
        "kv_fingerprint": "0f" * 16, "serving_fingerprint": "0f" * 16, "max_tokens": 1, "page_tokens": 1,
    }  # fmt: skip
    assert unpack_worker(mesh_pb2.Worker(**fields)).id == "decode-0"  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument) as refused:
        unpack_worker(mesh_pb2.Worker(**(fields | changes)))  # type: ignore[arg-type]
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("kind", "field", "prompt"),
    [
        (InvalidArgument, "prompt", inference_pb2.Prompt()),
        (InvalidArgument, "prompt", inference_pb2.Prompt(text="")),
        (InvalidArgument, "prompt", inference_pb2.Prompt(tokens=common_pb2.TokenIds())),
        (InvalidArgument, "prompt", inference_pb2.Prompt(tokens=common_pb2.TokenIds(ids=[2**31]))),
        (InvalidArgument, "messages", inference_pb2.Prompt(chat=inference_pb2.Chat())),
        (
            InvalidArgument,
            "role",
            inference_pb2.Prompt(chat=inference_pb2.Chat(messages=[inference_pb2.ChatMessage(content="hello")])),
        ),
        (TooLarge, "prompt", inference_pb2.Prompt(text="x" * MAX_TEXT_BYTES)),
    ],
)
def test_prompts(kind: type[BatonError], field: str, prompt: inference_pb2.Prompt) -> None:
    with pytest.raises(kind) as refused:
        unpack_prompt(prompt)
    assert refused.value.field == field
    assert len(refused.value.message) < 200, "a message never repeats the prompt"


UNPACKERS: list[Callable[[bytes], object]] = [
    lambda data: unpack_command(worker_pb2.DecodeCommand.FromString(data)),
    lambda data: unpack_batch(worker_pb2.StepBatch.FromString(data)),
    lambda data: unpack_prefill_call(worker_pb2.PrefillRequest.FromString(data)),
    lambda data: unpack_view(mesh_pb2.View.FromString(data)),
    lambda data: unpack_prompt(inference_pb2.Prompt.FromString(data)),
]


def _varied(data: bytearray, changes: list[tuple[int, int]]) -> bytes:
    for position, byte in changes:
        data[position % len(data)] = byte
    return bytes(data)


@given(
    st.sampled_from(UNPACKERS),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_messages_give_an_error_of_ours_or_of_protobuf(
    unpack: Callable[[bytes], object], changes: list[tuple[int, int]]
) -> None:
    messages = (start(), output(logprobs=[-1.0, -2.0], handoff={"wait_ms": 1.0}), ticket())
    for message in messages:
        try:
            unpack(_varied(bytearray(message.SerializeToString()), changes))
        except (BatonError, DecodeError):
            continue
