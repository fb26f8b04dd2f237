"""Text to token ids and back, as a checkpoint's own tokenizer files say. Never loads weights or imports torch."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import cast

import jinja2
from transformers import PreTrainedTokenizerFast

from runtime.domain.call_forms import CallForm
from runtime.errors import InvalidArgument, ModelError
from runtime.model.delta import DeltaRenderer
from runtime.model.detokenizer import Detokenizer
from runtime.model.probed import Tools
from runtime.model.tooling import Tooling
from runtime.ports import TextDecoder

TOKENIZER_FILE = "tokenizer.json"
# What the code inside a template can raise beside jinja's own errors, given messages that it does not expect.
_TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError)


class Tokenizer:
    """The tokenizer of a Hugging Face directory. `decode` and `decoder` leave special tokens out."""

    def __init__(self, path: Path, tool_calls: str = "auto") -> None:
        """`tool_calls` names the form in which the model calls tools, `auto` being what its template shows. Raises
        `ModelError` when there is no tokenizer.json, or it or its chat template cannot be used."""
        self._tool_calls = tool_calls
        self._fast = _open(path)
        self._backend = self._fast.backend_tokenizer
        # A length baked into the file would silently shorten prompts.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._detokenizer = Detokenizer(self._backend)
        self.vocab_size: int = self._backend.get_vocab_size()
        self.eos_ids = frozenset(_eos_ids(path, self._fast.eos_token_id))

    @property
    def has_chat_template(self) -> bool:
        return self._fast.chat_template is not None

    @cached_property
    def vocabulary(self) -> str:
        """32 hexadecimal digits, of the whole tokenizer as it is used."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=16).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids with the special tokens that the model wants around a prompt."""
        return self._encode(text, special=True, field="prompt")

    def encode_within(self, text: str) -> list[int]:
        """Token ids of a text inside an answer: without special tokens around it."""
        return self._encode(text, special=False, field="text")

    def render_chat(
        self, messages: Sequence[dict[str, object]], tools: Tools = (), *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Token ids of a conversation through the chat template, ending where the assistant begins.

        Raises `InvalidArgument` naming `messages` when there is no template or it refuses them.
        """
        if not self.has_chat_template:
            raise InvalidArgument("messages: this model has no chat template, send a prompt instead", field="messages")
        if not messages:
            raise InvalidArgument("messages must not be empty", field="messages")
        text = self._render(messages, tools, add_generation_prompt=add_generation_prompt)
        return self._encode(text, special=False, field="messages")

    def no_deltas(self) -> str | None:
        return self._deltas.why_not if self.has_chat_template else "it has no chat template"

    def render_delta(
        self, preamble: Sequence[dict[str, object]], messages: Sequence[dict[str, object]], tools: Tools = ()
    ) -> list[int]:
        return self._encode(self._deltas.render(preamble, messages, tools), special=False, field="messages")

    def no_tools(self) -> str | None:
        return self._tooling.why_not if self.has_chat_template else "it has no chat template"

    def no_results(self) -> str | None:
        return self._deltas.why_no_results()

    @property
    def call_form(self) -> CallForm | None:
        return self._tooling.form if self.has_chat_template else None

    def special(self, text: str) -> int | None:
        ids = self.encode_within(text)
        return ids[0] if len(ids) == 1 and not self.decode(ids) else None

    def to_json(self) -> str:
        """The whole tokenizer, as tokenizer.json has it."""
        return str(self._backend.to_str())

    def decode(self, tokens: Sequence[int]) -> str:
        return self._detokenizer.decode(tokens)

    def decoder(self) -> TextDecoder:
        return self._detokenizer.decoder()

    @cached_property
    def _deltas(self) -> DeltaRenderer:
        return DeltaRenderer(self._render)

    @cached_property
    def _tooling(self) -> Tooling:
        return Tooling(self._render, self._tool_calls)

    def _render(
        self, messages: Sequence[dict[str, object]], tools: Tools = (), *, add_generation_prompt: bool = True
    ) -> str:
        # Content may be more than text (tool calls, parts): what a message may hold is the template's to say.
        conversation = cast("list[dict[str, str]]", list(messages))
        try:
            text = self._fast.apply_chat_template(
                conversation, [*tools] or None, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except _TEMPLATE_ERRORS as error:
            raise InvalidArgument(f"messages: the chat template refused them: {error}", field="messages") from error
        assert isinstance(text, str)
        return text

    def _encode(self, text: str, *, special: bool, field: str) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgument(f"{field} is not valid Unicode: {error.reason}", field=field) from error
        # A batch lets other threads run meanwhile; `encode` holds the interpreter, seconds for a long text.
        (encoding,) = self._backend.encode_batch([text], add_special_tokens=special)
        ids: list[int] = encoding.ids
        return ids


def _open(path: Path) -> PreTrainedTokenizerFast:
    """Reads tokenizer.json as it stands: the classes of single models rebuild parts of it from their own defaults."""
    if not (path / TOKENIZER_FILE).is_file():
        raise ModelError(f"{path}: there is no {TOKENIZER_FILE}")
    try:
        fast: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise ModelError(f"{path / TOKENIZER_FILE}: cannot be read: {error}") from error
    if fast.chat_template is not None:
        _check_template(path, fast)
    return fast


def _check_template(path: Path, fast: PreTrainedTokenizerFast) -> None:
    """A template that does not even parse is the checkpoint's fault, and must not be blamed on a request."""
    try:
        fast.apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(f"{path}: the chat template has a syntax error in line {error.lineno}: {error}") from error
    except _TEMPLATE_ERRORS:
        return  # it parses; what it wants of messages is for the requests to meet


def _eos_ids(path: Path, of_tokenizer: int | None) -> Iterable[int]:
    """The ids that end a turn: those that generation ends at, and the tokenizer's own."""
    if of_tokenizer is not None:
        yield of_tokenizer
    for file in (path / "generation_config.json", path / "config.json"):
        declared = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
        if declared is not None:
            yield from declared if isinstance(declared, list) else [declared]
            return
