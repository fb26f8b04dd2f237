"""A rank's part of a checkpoint as transformers loads one: its configuration, and its tensors, read when wanted."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from transformers import PreTrainedConfig

from runtime.model.checkpoint import Checkpoint
from runtime.model.share import WIDTHS, Part, Share

if TYPE_CHECKING:
    from pathlib import Path


class LyingTensor:
    """A stored tensor, or a part of it; `[...]` reads it, which is all that is asked of it."""

    def __init__(self, stored: Any, part: Part | None) -> None:  # noqa: ANN401 - safetensors has no name for it
        self._stored = stored
        self._part = part

    def __getitem__(self, _: object) -> torch.Tensor:
        part, stored = self._part, self._stored
        if part is None:
            whole: torch.Tensor = stored[...]
            return whole
        if not part.ranges:
            return torch.zeros_like(stored[...])
        before = (slice(None),) * part.axis
        pieces = [stored[(*before, taken)] for taken in part.ranges]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, part.axis)


@contextmanager
def opened_parts(checkpoint: Checkpoint, share: Share) -> Iterator[dict[str, LyingTensor]]:
    """The rank's tensors by name; they can be read for as long as the context is open."""
    files: dict[Path, Any] = {}
    with ExitStack() as stack:
        tensors = {}
        for name, tensor in checkpoint.tensors.items():
            if tensor.file not in files:
                files[tensor.file] = stack.enter_context(safe_open(tensor.file, framework="pt"))
            tensors[name] = LyingTensor(files[tensor.file].get_slice(name), share.part(tensor))
        yield tensors


def share_config(config: PreTrainedConfig, share: Share) -> PreTrainedConfig:
    """The configuration of the smaller model that a rank holds."""
    own = copy.deepcopy(config)
    text: Any = own.get_text_config()
    # Where it is not said it is worked out from the number of heads, which is another one now.
    text.head_dim = share.head_dim
    text.num_attention_heads = share.heads // share.ranks
    text.num_key_value_heads = share.kv.held
    for width in WIDTHS:
        extent = getattr(text, width, None)
        if isinstance(extent, int):
            setattr(text, width, extent // share.ranks)
    return own
