"""Engine cores over the simulated compute, whose next token depends on every value that the block table reaches."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from runtime.domain.batching import Limits
from runtime.domain.sequence import Sampling, Sequence
from runtime.domain.steps import (
    DecodeAwaiting,
    DecodeLocal,
    Exported,
    Frame,
    Generated,
    Prefill,
    SequenceFailed,
    StepEvent,
    StepOutput,
    Submit,
)
from runtime.engine.core import EngineCore
from runtime.engine.simulated import (
    EOS,
    SimulatedCompute,
    SimulatedDecoder,
    SimulatedTokenizer,
    simulated_grammars,
    simulated_spec,
)
from runtime.errors import BatonError
from runtime.ids import SequenceId

PAGE = 4
SALT = b"salt"
GREEDY = Sampling(max_tokens=9, temperature=0.0)
LOCAL, AWAITING = DecodeLocal(), DecodeAwaiting()


def new_core(pages: int = 64, step_tokens: int = 8, max_running: int = 4, max_tokens: int = 200) -> EngineCore:
    spec = simulated_spec("simulated", PAGE, max_tokens)
    compute = SimulatedCompute(pages, PAGE)
    limits = Limits(step_tokens, max_running)
    return EngineCore(spec, pages, limits, compute, frozenset({EOS}), SimulatedDecoder, simulated_grammars())


def prompt_of(length: int, first: int = 0) -> tuple[int, ...]:
    return tuple((first + 7 * place) % 97 for place in range(length))


def sequence(
    name: str, prompt: Iterable[int], sampling: Sampling = GREEDY, forced: Iterable[int] = (), salt: bytes = SALT
) -> Sequence:
    return Sequence(SequenceId(name), tuple(prompt), sampling, salt, tuple(forced))


@dataclass
class Ran:
    """What a core brought until it had nothing more to do."""

    steps: list[StepOutput] = field(default_factory=list)

    @property
    def events(self) -> list[StepEvent]:
        return [event for step in self.steps for event in step.events]

    def generated(self, name: str) -> list[Generated]:
        return [event for event in self.events if isinstance(event, Generated) and event.sequence == name]

    def tokens(self, name: str) -> list[int]:
        """Its tokens, whose indices must have no gap."""
        found: list[int] = []
        for event in self.generated(name):
            assert event.index == self.generated(name)[0].index + len(found)
            found += [sampled.token for sampled in event.tokens]
        return found

    def frames(self) -> list[Frame]:
        return [event.frame for event in self.events if isinstance(event, Exported)]

    def error(self) -> BatonError:
        (event,) = self.events
        assert isinstance(event, SequenceFailed)
        return event.error


def run(core: EngineCore) -> Ran:
    ran = Ran()
    while core.busy:
        ran.steps.append(core.step())
        assert len(ran.steps) < 2000, "it spins"
    core.check()
    return ran


def generate(core: EngineCore, *sequences: Sequence) -> Ran:
    for each in sequences:
        core.apply(Submit(each, LOCAL))
    return run(core)


def prefilled(prompt: tuple[int, ...], first_page: int = 0) -> list[Frame]:
    """What a prefill worker exports for a prompt."""
    core = new_core()
    core.apply(Submit(sequence("p", prompt), Prefill(len(prompt) - 1, first_page)))
    return run(core).frames()


def text_of(tokens: Iterable[int]) -> str:
    decoder = SimulatedTokenizer().decoder()
    return "".join(decoder.push(token) for token in tokens)
