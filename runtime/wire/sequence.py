"""Refs, sampling, finish reasons, top tokens and loads: what messages of several services have in common."""

from collections.abc import Sequence

from batonmesh.v1 import common_pb2 as pb
from runtime.domain.grammar import MAX_CHOICES, Grammar, GrammarKind, one_of
from runtime.domain.pages import Occupancy
from runtime.domain.sampling import MAX_BANNED, MAX_LOGIT_BIASES, NO_PENALTIES, Penalties
from runtime.domain.scoring import MAX_PROMPT_LOGPROBS, PromptScores
from runtime.domain.sequence import MAX_TOP_LOGPROBS, FinishReason, Ref, Sampling
from runtime.domain.steps import Load
from runtime.errors import InvalidArgument
from runtime.ids import TurnId
from runtime.wire import fields

TO_FINISH = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: pb.FINISH_REASON_CANCELLED,
}
_FROM_FINISH = {number: reason for reason, number in TO_FINISH.items()}


def unpack_finish(number: int, field: str) -> FinishReason:
    reason = _FROM_FINISH.get(pb.FinishReason.ValueType(number))
    if reason is None:
        raise InvalidArgument(f"{field} has the unknown value {number}", field=field)
    return reason


def pack_ref(ref: Ref) -> pb.Ref:
    return pb.Ref(turn=ref.turn, epoch=ref.epoch, attempt=ref.attempt)


def unpack_ref(message: pb.Ref) -> Ref:
    turn, epoch, attempt = message.turn, message.epoch, message.attempt
    if not 1 <= len(turn) <= 128 or not epoch or not attempt:
        fields.name(turn, "ref.turn")
        fields.at_least(1, epoch, "ref.epoch")
        fields.at_least(1, attempt, "ref.attempt")
    return Ref(TurnId(turn), epoch, attempt)


def pack_sampling(sampling: Sampling) -> pb.Sampling:
    return pb.Sampling(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        seed=sampling.seed,
        stop=sampling.stop,
        stop_token_ids=sampling.stop_token_ids,
        ignore_eos=sampling.ignore_eos,
        logprobs=sampling.logprobs,
        min_p=sampling.min_p,
        typical_p=sampling.typical_p,
        repetition_penalty=sampling.penalties.repetition,
        presence_penalty=sampling.penalties.presence,
        frequency_penalty=sampling.penalties.frequency,
        logit_bias=dict(sampling.logit_bias),
        min_tokens=sampling.min_tokens,
        banned_tokens=[pb.TokenIds(ids=each) for each in sampling.banned_tokens],
        grammar=None if sampling.grammar is None else _pack_grammar(sampling.grammar),
        prompt_logprobs=sampling.prompt_logprobs,
    )


def unpack_sampling(message: pb.Sampling, *, max_tokens: int, seed: int) -> Sampling:
    """Raises `InvalidArgument` naming the first field out of its range. `max_tokens` and `seed` are for absent ones.

    `bad_words` stay in the message: they become `banned_tokens` where there is a tokenizer.
    """
    fields.at_most(MAX_LOGIT_BIASES, len(message.logit_bias), "logit_bias")
    fields.at_most(MAX_BANNED, len(message.banned_tokens), "banned_tokens")
    sampling = Sampling(
        max_tokens=message.max_tokens if message.HasField("max_tokens") else max_tokens,
        temperature=message.temperature if message.HasField("temperature") else 1.0,
        top_k=message.top_k,
        top_p=message.top_p if message.HasField("top_p") else 1.0,
        seed=message.seed if message.HasField("seed") else seed,
        stop=tuple(message.stop),
        stop_token_ids=fields.tokens(message.stop_token_ids, "stop_token_ids"),
        ignore_eos=message.ignore_eos,
        logprobs=message.logprobs if message.HasField("logprobs") else None,
        min_p=message.min_p,
        typical_p=message.typical_p if message.HasField("typical_p") else 1.0,
        penalties=_unpack_penalties(message),
        logit_bias=tuple(sorted(message.logit_bias.items())),
        min_tokens=message.min_tokens,
        banned_tokens=tuple([fields.tokens(each.ids, "banned_tokens", least=1) for each in message.banned_tokens]),
        grammar=_unpack_grammar(message.grammar) if message.HasField("grammar") else None,
        prompt_logprobs=message.prompt_logprobs if message.HasField("prompt_logprobs") else None,
    )
    sampling.validate()
    return sampling


def sampling_bytes(sampling: Sampling) -> bytes:
    """As a store keeps it."""
    return pack_sampling(sampling).SerializeToString()


def sampling_from(packed: bytes) -> Sampling:
    message = pb.Sampling.FromString(packed)
    return unpack_sampling(message, max_tokens=message.max_tokens, seed=message.seed)


def _unpack_penalties(message: pb.Sampling) -> Penalties:
    """The very object of those without, whom every engine step meets."""
    repetition = message.repetition_penalty if message.HasField("repetition_penalty") else 1.0
    presence, frequency = message.presence_penalty, message.frequency_penalty
    if (repetition, presence, frequency) == (1.0, 0.0, 0.0):
        return NO_PENALTIES
    return Penalties(repetition, presence, frequency)


def _pack_grammar(grammar: Grammar) -> pb.Grammar:
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            return pb.Grammar(json_schema=grammar.text)
        case GrammarKind.REGEX:
            return pb.Grammar(regex=grammar.text)
        case GrammarKind.LARK:
            return pb.Grammar(lark=grammar.text)
        case GrammarKind.CHOICE:
            return pb.Grammar(choice=pb.Choices(texts=grammar.choices))


def _unpack_grammar(message: pb.Grammar) -> Grammar:
    match message.WhichOneof("kind"):
        case "json_schema":
            return Grammar(GrammarKind.JSON_SCHEMA, message.json_schema)
        case "regex":
            return Grammar(GrammarKind.REGEX, message.regex)
        case "lark":
            return Grammar(GrammarKind.LARK, message.lark)
        case "choice":
            fields.at_most(MAX_CHOICES, len(message.choice.texts), "grammar")
            return one_of(message.choice.texts)
        case _:
            raise InvalidArgument("grammar is empty: it needs json_schema, regex, choice or lark", field="grammar")


def pack_top(top: Sequence[tuple[int, float]]) -> pb.TopTokens:
    return pb.TopTokens(ids=[token for token, _ in top], logprobs=[logprob for _, logprob in top])


def unpack_top(message: pb.TopTokens, field: str) -> tuple[tuple[int, float], ...]:
    if len(message.ids) != len(message.logprobs):
        raise InvalidArgument(f"{field} has {len(message.ids)} ids and {len(message.logprobs)} logprobs", field=field)
    fields.at_most(MAX_TOP_LOGPROBS, len(message.ids), field)
    return tuple(zip(fields.tokens(message.ids, field), unpack_logprobs(message.logprobs, field), strict=True))


def unpack_logprobs(logprobs: Sequence[float], field: str) -> tuple[float, ...]:
    """-infinity is a probability of zero; NaN and +infinity are none."""
    for logprob in logprobs:
        if not logprob < float("inf"):
            raise InvalidArgument(f"{field} holds {logprob}, which is no log-probability", field=field)
    return tuple(logprobs)


def pack_scores(scores: PromptScores) -> pb.PromptLogprobs:
    return pb.PromptLogprobs(
        logprobs=scores.logprobs,
        ranks=scores.ranks,
        top=scores.top,
        top_ids=scores.top_tokens,
        top_logprobs=scores.top_logprobs,
    )


def unpack_scores(message: pb.PromptLogprobs, field: str) -> PromptScores:
    fields.at_most(MAX_PROMPT_LOGPROBS, len(message.logprobs), field)
    if message.top > MAX_TOP_LOGPROBS:
        raise InvalidArgument(f"{field}.top is {message.top}, the limit is {MAX_TOP_LOGPROBS}", field=field)
    count = len(message.logprobs)
    for column, found, wanted in (
        ("ranks", len(message.ranks), count),
        ("top_ids", len(message.top_ids), count * message.top),
        ("top_logprobs", len(message.top_logprobs), count * message.top),
    ):
        if found != wanted:
            raise InvalidArgument(f"{field}.{column} has {found} entries, not {wanted}", field=field)
    return PromptScores(
        message.top,
        unpack_logprobs(message.logprobs, field),
        tuple(message.ranks),
        fields.tokens(message.top_ids, field),
        unpack_logprobs(message.top_logprobs, field),
    )


def pack_load(load: Load) -> pb.Load:
    pages = load.pages
    return pb.Load(
        running=load.running,
        waiting=load.waiting,
        awaiting=load.awaiting,
        prefill_tokens=load.prefill_tokens,
        pages=pb.Occupancy(free=pages.free, landing=pages.landing, owned=pages.owned, cached=pages.cached),
    )


def unpack_load(message: pb.Load) -> Load:
    pages = message.pages
    return Load(
        running=message.running,
        waiting=message.waiting,
        awaiting=message.awaiting,
        prefill_tokens=message.prefill_tokens,
        pages=Occupancy(pages.free, pages.landing, pages.owned, pages.cached),
    )
