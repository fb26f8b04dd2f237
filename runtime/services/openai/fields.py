"""The kinds of fields in OpenAI's requests: how each is read, and how it says no. Never what becomes of its value."""

import json

from pydantic import PlainValidator
from pydantic_core import PydanticCustomError

from runtime.domain.sampling import MAX_LOGIT_BIAS, MAX_LOGIT_BIASES

NOT_SUPPORTED = "not_supported"
_TOKEN_DIGITS = 10


def not_supported(predicate: str) -> PydanticCustomError:
    """`predicate` follows the name of the field."""
    return PydanticCustomError(NOT_SUPPORTED, "{predicate}", {"predicate": predicate})


def invalid(predicate: str) -> PydanticCustomError:
    """`predicate` follows the name of the field."""
    return PydanticCustomError("invalid", "{predicate}", {"predicate": predicate})


def only(*neutral: object) -> PlainValidator:
    """A field that is not supported yet. Null and the values of `neutral` ask for nothing, so they are accepted."""
    accepted = " or ".join(map(json.dumps, neutral))
    predicate = "is not supported yet" + (f"; leave it out or send {accepted}" if neutral else "")

    def check(value: object) -> None:
        if value is not None and not any(_same(value, each) for each in neutral):
            raise not_supported(predicate)

    return PlainValidator(check)


def _same(value: object, neutral: object) -> bool:
    """Equal as JSON values are: true is not 1."""
    return value == neutral and isinstance(value, bool) is isinstance(neutral, bool)


def word(served: tuple[str, ...], known: tuple[str, ...]) -> PlainValidator:
    """One of `served`; those of `known` exist in OpenAI's API and are not supported yet."""
    choice = ", ".join(served)

    def check(value: object) -> str:
        if isinstance(value, str) and value in served:
            return value
        if isinstance(value, str) and value in known:
            raise not_supported(f"{value!r} is not supported yet, only {choice}")
        raise invalid(f"must be one of {choice}")

    return PlainValidator(check)


def read_stop(value: object) -> tuple[str, ...]:
    strings = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(strings, list) or not all(isinstance(each, str) for each in strings):
        raise invalid("must be a string or a list of strings")
    return tuple(strings)


def read_logit_bias(value: object) -> tuple[tuple[int, float], ...]:
    """An object of token ids, which JSON can only have as strings, and biases; sorted by token."""
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise invalid("must be an object of token ids and biases")
    if len(value) > MAX_LOGIT_BIASES:
        raise invalid(f"takes at most {MAX_LOGIT_BIASES} tokens, got {len(value)}")
    biases: dict[int, float] = {}
    for token, bias in value.items():
        if not (len(token) <= _TOKEN_DIGITS and token.isdecimal() and token == str(int(token))):
            raise invalid(f"must have token ids as its keys, got {token[:40]!r}")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or abs(bias) > MAX_LOGIT_BIAS:
            raise invalid(f"must have numbers up to {MAX_LOGIT_BIAS:g} as its values, which token {token} has not")
        biases[int(token)] = float(bias)
    return tuple(sorted(biases.items()))


def read_prompt(value: object) -> str | list[int]:
    """A text or token ids; a list with exactly one of them is that one."""
    if isinstance(value, list) and value and isinstance(value[0], str | list):
        if len(value) > 1:
            raise not_supported(f"with several prompts is not supported yet: send one, not {len(value)}")
        value = value[0]
    if not isinstance(value, str) and not (isinstance(value, list) and all(type(token) is int for token in value)):
        raise invalid("must be a string, a list of token ids, or a list with one of them")
    if not value:
        raise invalid("must not be empty")
    return value


def read_content(value: object) -> object:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list):
        raise invalid("must be a string or a list of text parts")
    return value


def read_top_k(value: object) -> object:
    """Some servers write -1 for off."""
    return 0 if value == -1 else value
