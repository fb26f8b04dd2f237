"""How often answers over pages that lost something on their way are those over pages that lost nothing.

Prefills in one engine and decodes in another of the same checkpoint, in this process: the frames between them are the
bytes that would travel. Decides nothing; it is measured here.
"""

from collections.abc import Sequence as Many
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from runtime.domain.batching import Limits
from runtime.domain.messages import Ticket
from runtime.domain.pages import pages_for
from runtime.domain.sequence import Sampling, Sequence
from runtime.domain.steps import (
    DecodeAwaiting,
    Encoding,
    Exported,
    Frame,
    Generated,
    Land,
    Prefill,
    Reserved,
    Run,
    Submit,
)
from runtime.engine.core import EngineCore
from runtime.engine.native import NativeSettings, build_native
from runtime.ids import BootId, SequenceId, TransferId
from runtime.kv.frames import FrameCodec
from runtime.kv.packing import packing, unpacked

_PAGE_TOKENS = 32
_STEP_TOKENS = 512
_KEPT = "float32"


@dataclass(frozen=True, slots=True)
class Way:
    """How pages go: from a worker that computes in `dtype`, in `encoding`, to one that keeps float32."""

    name: str
    dtype: str = _KEPT
    encoding: Encoding = Encoding.PLAIN


WAYS = {
    way.name: way
    for way in (
        *(Way(encoding.value, encoding=encoding) for encoding in Encoding),
        Way("bfloat16", dtype="bfloat16"),
        Way("bfloat16+fp8", dtype="bfloat16", encoding=Encoding.FP8),
    )
}


@dataclass(frozen=True, slots=True)
class Answers:
    """`tokens` of the answer to each prompt; `bytes` of payload travelled for all."""

    tokens: tuple[tuple[int, ...], ...]
    bytes: int

    def same(self, other: "Answers") -> int:
        """How many of them are the same to the last token."""
        return sum(one == another for one, another in zip(self.tokens, other.tokens, strict=True))


def answers_over(path: Path, way: Way, prompts: Many[tuple[int, ...]], most: int, threads: int) -> Answers:
    """Greedy answers of at most `most` tokens. Raises what `build_native` raises."""
    longest = max(len(prompt) for prompt in prompts) + most
    build = partial(_engine, path, 2 * pages_for(longest, _PAGE_TOKENS) + 2, threads)
    prefill, decode = build(way.dtype), build(_KEPT)
    # Nothing is found in a prefix cache that came another way.
    sampling, moved = Sampling(max_tokens=most, temperature=0.0), 0
    tokens = []
    for number, prompt in enumerate(prompts):
        sequence = Sequence(SequenceId(str(number)), prompt, sampling, way.name.encode())
        decode.apply(Submit(sequence, DecodeAwaiting()))
        (reserved,) = (event for event in decode.step().events if isinstance(event, Reserved))
        frames = _prefilled(prefill, sequence, reserved.local_tokens // _PAGE_TOKENS)
        for data in _sent(frames, prefill, decode, way):
            moved += len(data.payload)
            decode.apply(Land(sequence.id, unpacked(data, decode.spec)))
        decode.apply(Run(sequence.id))
        tokens.append(_decoded(decode))
    prefill.close()
    decode.close()
    return Answers(tuple(tokens), moved)


def _engine(path: Path, pages: int, threads: int, dtype: str) -> EngineCore:
    settings = NativeSettings(path.name, path, dtype, _PAGE_TOKENS, threads)
    return build_native(settings, Limits(_STEP_TOKENS, max_running=1), lambda _: pages)


def _prefilled(engine: EngineCore, sequence: Sequence, first_page: int) -> list[Frame]:
    engine.apply(Submit(sequence, Prefill(len(sequence.prompt) - 1, first_page)))
    frames: list[Frame] = []
    while engine.busy:
        frames += [event.frame for event in engine.step().events if isinstance(event, Exported)]
    return frames


def _sent(frames: list[Frame], prefill: EngineCore, decode: EngineCore, way: Way) -> list[Frame]:
    """As they are read from the bytes that travelled."""
    spec = decode.spec
    ticket = Ticket(
        TransferId("measured"), 1, BootId("here"), "none", "none", spec.kv_fingerprint, spec.dtype, (), 1,
        encoding=way.encoding, dtypes=(way.dtype,),
    )  # fmt: skip
    pack, ours = packing(prefill.spec, ticket), FrameCodec(prefill.spec)
    theirs = FrameCodec(spec, way.encoding, (way.dtype,))
    return [theirs.decode(ours.encode(packed)) for frame in frames for packed in pack(frame)]


def _decoded(engine: EngineCore) -> tuple[int, ...]:
    tokens: list[int] = []
    while engine.busy:
        for event in engine.step().events:
            if isinstance(event, Generated):
                tokens += [sampled.token for sampled in event.tokens]
    return tuple(tokens)
