"""What a request to the OpenAI-compatible API may say, field by field: read, or refused by name, never ignored.

`only(...)` marks what is documented elsewhere and not supported yet; what has no place here is an unknown field.
"""

from abc import abstractmethod
from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, PlainValidator, model_validator

from runtime.domain.grammar import Grammar
from runtime.domain.sampling import MAX_BANNED, MAX_BANNED_LENGTH, Penalties
from runtime.domain.sequence import MAX_STOP_TOKEN_IDS, MAX_TOP_LOGPROBS, Sampling
from runtime.domain.settling import conversation
from runtime.domain.tools import NO_TOOLS, Toolbox, ToolChoice
from runtime.errors import InvalidArgument
from runtime.ports import Tokenizer
from runtime.services.banning import MAX_BAD_WORDS
from runtime.services.choices import MAX_CHOICES, check_choices
from runtime.services.openai.fields import (
    only,
    read_logit_bias,
    read_prompt,
    read_stop,
    read_top_k,
)
from runtime.services.openai.grammars import (
    GRAMMAR_FIELDS,
    read_choice,
    read_lark,
    read_regex,
    read_response_format,
    read_schema,
)
from runtime.services.openai.settings import DEADLINE_HEADER
from runtime.services.openai.tools import ChatTool, Message, read_tool_choice, toolbox_of

_FRAME_CHARS = 32  # what a template writes around a message, about
Limit = Annotated[int, Field(ge=1)]
TokenId = Annotated[int, Field(ge=0)]
Label = Annotated[str, Field(max_length=512)]
Off = Annotated[Any, only(False)]
On = Annotated[Any, only(True)]
One = Annotated[Any, only(1)]
NoList = Annotated[Any, only([])]
NoText = Annotated[Any, only("")]
Nothing = Annotated[Any, only()]


BannedTokens = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_BANNED_LENGTH)]


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Object):
    include_usage: bool = False
    include_obfuscation: Off = None
    continuous_usage_stats: Off = None


class GenerationRequest(_Object):
    """What both kinds of requests share."""

    model: Annotated[str, Field(max_length=256)]
    max_tokens: Limit | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[int | None, BeforeValidator(read_top_k)] = None
    seed: int | None = None
    stop: Annotated[tuple[str, ...], PlainValidator(read_stop)] = ()
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKEN_IDS)] | None = None
    ignore_eos: bool | None = None
    # What the answer must match, one of them at most: a JSON schema, a regular expression, one of some texts, or a
    # context-free grammar in Lark's notation; what each may say is in batonmesh.v1.Grammar.
    guided_json: Annotated[Grammar | None, PlainValidator(read_schema)] = None
    guided_regex: Annotated[Grammar | None, PlainValidator(read_regex)] = None
    guided_choice: Annotated[Grammar | None, PlainValidator(read_choice)] = None
    guided_grammar: Annotated[Grammar | None, PlainValidator(read_lark)] = None
    response_format: Annotated[Grammar | None, PlainValidator(read_response_format)] = None
    banned_tokens: Annotated[list[BannedTokens], Field(max_length=MAX_BANNED)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    # They ask for nothing that shows in the answer.
    user: Label | None = None
    metadata: dict[str, Label] | None = None

    # Of OpenAI's API.
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: Annotated[tuple[tuple[int, float], ...], PlainValidator(read_logit_bias)] = ()

    # Of other servers' API, where clients send them by habit.
    best_of: One = None
    min_p: float | None = None
    typical_p: float | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    bad_words: Annotated[list[str], Field(max_length=MAX_BAD_WORDS)] | None = None
    length_penalty: One = None
    use_beam_search: Off = None
    skip_special_tokens: On = None
    spaces_between_special_tokens: On = None
    include_stop_str_in_output: Off = None
    allowed_token_ids: Nothing = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    truncate_prompt_tokens: Nothing = None
    structured_outputs: Nothing = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise InvalidArgument("stream_options needs stream to be true", field="stream_options")
        return self

    @model_validator(mode="after")
    def _the_prompt_is_explained_at_once(self) -> Self:
        if self.prompt_logprobs is not None and self.stream:
            raise InvalidArgument("prompt_logprobs needs stream to be false", field="prompt_logprobs")
        return self

    @model_validator(mode="after")
    def _one_grammar_at_most(self) -> Self:
        names = [name for name, _ in self._grammars()]
        if len(names) > 1:
            raise InvalidArgument(f"{names[1]} and {names[0]} are both there: send one", field=names[1])
        return self

    def _grammars(self) -> list[tuple[str, Grammar]]:
        """Those that the request has, by their fields."""
        named = ((field, getattr(self, field)) for field in GRAMMAR_FIELDS)
        return [(field, grammar) for field, grammar in named if grammar is not None]

    @property
    def usage_asked(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def choices_asked(self) -> int:
        return self.n or 1

    @property
    def candidates_asked(self) -> int:
        """Of how many answers those that are given are the best."""
        return self.choices_asked

    @property
    def tokens_asked(self) -> int | None:
        """None: as many as the context has room for."""
        return self.max_tokens

    @property
    def echoes(self) -> bool:
        """Whether the answer begins with the prompt."""
        return False

    @property
    def prompt_text(self) -> str | None:
        """The prompt as it was sent, if that was text."""
        return None

    @property
    def silent(self) -> bool:
        """Whether no token of the answer is wanted: only what is told of the prompt."""
        return False

    @property
    def columns_asked(self) -> int | None:
        """The likeliest tokens wanted in each place of an echoed prompt."""
        return self.logprobs_asked if self.echoes else None

    @property
    def scores_asked(self) -> int | None:
        asked = [each for each in (self.prompt_logprobs, self.columns_asked) if each is not None]
        return max(asked, default=None)

    @property
    def toolbox(self) -> Toolbox:
        """What the answer may call; raises `InvalidArgument` naming the field at fault."""
        return NO_TOOLS

    @property
    @abstractmethod
    def logprobs_asked(self) -> int | None: ...

    @property
    @abstractmethod
    def text_size(self) -> int:
        """Characters to tokenize, about."""

    @abstractmethod
    def tokenize(self, tokenizer: Tokenizer) -> list[int]: ...

    def called(self, field: str) -> str:
        """What this request calls a field of `Generation`."""
        if field == "grammar":
            return next((name for name, _ in self._grammars()), field)
        return DEADLINE_HEADER if field == "deadline_ms" else field

    def sampling(self, room: int, seed: int) -> Sampling:
        """`room` is how many tokens the context leaves, `seed` is for a request that has none."""
        return Sampling(
            max_tokens=room if self.tokens_asked is None else self.tokens_asked,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=seed if self.seed is None else self.seed,
            stop=self.stop,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            logprobs=self.logprobs_asked,
            min_p=self.min_p or 0.0,
            typical_p=1.0 if self.typical_p is None else self.typical_p,
            penalties=Penalties(
                repetition=1.0 if self.repetition_penalty is None else self.repetition_penalty,
                presence=self.presence_penalty or 0.0,
                frequency=self.frequency_penalty or 0.0,
            ),
            logit_bias=self.logit_bias,
            min_tokens=self.min_tokens or 0,
            banned_tokens=tuple(map(tuple, self.banned_tokens or ())),
            grammar=next((grammar for _, grammar in self._grammars()), None),
            prompt_logprobs=self.scores_asked,
        )


class ChatRequest(GenerationRequest):
    messages: Annotated[list[Message], FailFast(), Field(min_length=1)]
    max_completion_tokens: Limit | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    service_tier: Annotated[Any, only("auto", "default")] = None

    tools: list[ChatTool] | None = None
    tool_choice: Annotated[tuple[ToolChoice, str | None] | None, PlainValidator(read_tool_choice)] = None
    parallel_tool_calls: bool | None = None

    store: Off = None
    functions: NoList = None
    function_call: Annotated[Any, only("none", "auto")] = None
    modalities: Annotated[Any, only(["text"])] = None
    audio: Nothing = None
    prediction: Nothing = None
    reasoning_effort: Nothing = None
    verbosity: Annotated[Any, only("medium")] = None
    moderation: Nothing = None
    web_search_options: Nothing = None
    prompt_cache_options: Nothing = None
    prompt_cache_retention: Annotated[Any, only("in_memory")] = None

    chat_template: Nothing = None
    chat_template_kwargs: Annotated[Any, only({})] = None
    add_generation_prompt: On = None
    continue_final_message: Off = None
    echo: Off = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise InvalidArgument("top_logprobs needs logprobs to be true", field="top_logprobs")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise InvalidArgument(
                f"max_completion_tokens is {self.max_completion_tokens} and its older name max_tokens is "
                f"{self.max_tokens}: send one of them",
                field="max_completion_tokens",
            )
        return self

    @model_validator(mode="after")
    def _tools_agree(self) -> Self:
        assert self.toolbox is not None, "reading it checks it"
        return self

    @property
    def text_size(self) -> int:
        offered = sum(len(tool.parameters) + len(tool.description) for tool in self.toolbox.tools)
        return offered + sum(_FRAME_CHARS + message.size for message in self.messages)

    @property
    def tokens_asked(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def logprobs_asked(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def tokenize(self, tokenizer: Tokenizer) -> list[int]:
        tools = [tool.for_template for tool in self.toolbox.tools] if self.toolbox.callable else []
        return tokenizer.render_chat(conversation([message.item for message in self.messages]), tools)

    @cached_property
    def toolbox(self) -> Toolbox:
        tools = self.tools or ()
        strict = any(tool.function.strict for tool in tools)
        return toolbox_of([tool.tool for tool in tools], self.tool_choice, self.parallel_tool_calls, strict=strict)

    def called(self, field: str) -> str:
        if field == "grammar" and self.toolbox.tools and not self._grammars():
            return "tools"
        if field == "max_tokens" and self.max_completion_tokens:
            return "max_completion_tokens"
        return "messages" if field == "prompt" else super().called(field)


class CompletionRequest(GenerationRequest):
    prompt: Annotated[str | list[int], PlainValidator(read_prompt)]
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    max_tokens: Annotated[int, Field(ge=0)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    echo: bool | None = None
    suffix: NoText = None

    @model_validator(mode="after")
    def _something_is_asked(self) -> Self:
        if self.silent and not self.echo:
            raise InvalidArgument("max_tokens must be at least 1 unless echo is true, got 0", field="max_tokens")
        return self

    @model_validator(mode="after")
    def _the_best_are_known_at_the_end(self) -> Self:
        check_choices(self.choices_asked, self.candidates_asked)
        if self.stream and self.candidates_asked > self.choices_asked:
            raise InvalidArgument("best_of above n needs stream to be false", field="best_of")
        return self

    @property
    def candidates_asked(self) -> int:
        return self.choices_asked if self.best_of is None else self.best_of

    @property
    def echoes(self) -> bool:
        return bool(self.echo)

    @property
    def prompt_text(self) -> str | None:
        return self.prompt if isinstance(self.prompt, str) else None

    @property
    def silent(self) -> bool:
        return self.max_tokens == 0

    @property
    def tokens_asked(self) -> int | None:
        return 1 if self.silent else self.max_tokens

    @property
    def text_size(self) -> int:
        return len(self.prompt) if isinstance(self.prompt, str) else 0

    @property
    def logprobs_asked(self) -> int | None:
        return self.logprobs

    def called(self, field: str) -> str:
        """An echo's log-probabilities are those of the prompt too."""
        return "logprobs" if field == "prompt_logprobs" and self.prompt_logprobs is None else super().called(field)

    def tokenize(self, tokenizer: Tokenizer) -> list[int]:
        return tokenizer.encode(self.prompt) if isinstance(self.prompt, str) else self.prompt
