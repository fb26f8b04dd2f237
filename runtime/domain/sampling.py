"""The parts of `Sampling` that bend a distribution, and the rules that fields are held to. Never tensors.

The order in which they act is that of vLLM's V1 sampler (vllm/v1/sample/sampler.py): `grammar`, banned tokens,
`min_tokens`, `logit_bias`, penalties, then temperature, `min_p`, `top_k`, `top_p`; last `typical_p`, which vLLM lacks,
where transformers has it (generation/utils.py, `_get_logits_processor`).
"""

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from runtime.errors import InvalidArgument

MAX_PENALTY = 2.0
MIN_REPETITION, MAX_REPETITION = 0.1, 10.0
MAX_LOGIT_BIASES = 1024
MAX_LOGIT_BIAS = 100.0
MAX_BANNED = 256
MAX_BANNED_LENGTH = 64
_SHOWN = 200

Rule = tuple[str, object, bool, str]
"""A field, its value, whether it is good, and the rule that a bad one breaks."""


def between(name: str, value: float, least: float, most: float) -> Rule:
    """NaN lies between nothing."""
    good = least <= value <= most
    return name, value, good, "" if good else f"must be between {least:.12g} and {most:.12g}"


def share(name: str, value: float) -> Rule:
    return name, value, 0 < value <= 1, "must be above 0 and at most 1"


def enforce(rules: Iterable[Rule]) -> None:
    """Raise `InvalidArgument` naming the first field that breaks its rule."""
    for name, value, good, rule in rules:
        if not good:
            raise InvalidArgument(f"{name} {rule}, got {repr(value)[:_SHOWN]}", field=name)


def choice_seed(seed: int, index: int) -> int:
    """The seed of one of several answers to a request; the first has the request's own. 0 to 2^63 - 1."""
    if index == 0:
        return seed
    digest = hashlib.blake2b(struct.pack("<QQ", seed, index), digest_size=8, person=b"baton choice").digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True, slots=True)
class Penalties:
    """Makes tokens that were there less likely, or more.

    `repetition` divides positive logits and multiplies negative ones of tokens of the prompt and the output (1 is
    off). Of the output alone, `presence` is subtracted once from the logit of each token, `frequency` as often as the
    token is there (0 is off).
    """

    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0

    def rules(self) -> tuple[Rule, ...]:
        return (
            between("repetition_penalty", self.repetition, MIN_REPETITION, MAX_REPETITION),
            between("presence_penalty", self.presence, -MAX_PENALTY, MAX_PENALTY),
            between("frequency_penalty", self.frequency, -MAX_PENALTY, MAX_PENALTY),
        )


NO_PENALTIES = Penalties()


def logit_bias_rules(biases: tuple[tuple[int, float], ...]) -> tuple[Rule, ...]:
    worst = max((abs(bias) if bias == bias else float("inf") for _, bias in biases), default=0.0)
    return (
        ("logit_bias", len(biases), len(biases) <= MAX_LOGIT_BIASES, f"takes at most {MAX_LOGIT_BIASES} tokens"),
        (
            "logit_bias",
            biases,
            worst <= MAX_LOGIT_BIAS,
            f"takes biases between {-MAX_LOGIT_BIAS:g} and {MAX_LOGIT_BIAS:g}",
        ),
        ("logit_bias", biases, len({token for token, _ in biases}) == len(biases), "must not name a token twice"),
    )


def banned_rules(sequences: tuple[tuple[int, ...], ...]) -> tuple[Rule, ...]:
    good = all(1 <= len(each) <= MAX_BANNED_LENGTH for each in sequences)
    return (
        ("banned_tokens", len(sequences), len(sequences) <= MAX_BANNED, f"takes at most {MAX_BANNED} sequences"),
        ("banned_tokens", sequences, good, f"takes sequences of 1 to {MAX_BANNED_LENGTH} token ids"),
    )
