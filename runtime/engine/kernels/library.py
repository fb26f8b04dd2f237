"""The compiled kernels as functions of tensors on the CPU. Owns their shapes; what they compute, the C sources say."""

import ctypes
from dataclasses import dataclass
from functools import cache

import torch

from runtime.engine.kernels.compiling import compiled

# Outputs whose weights lie together, and numbers that are computed at a time.
_TILE, _LANES = 32, 16
_PLACE, _COUNT, _NUMBER, _FLAG = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
_TAKES = {
    "baton_product": (*[_PLACE] * 4, *[_COUNT] * 3),
    "baton_norm": (*[_PLACE] * 3, *[_COUNT] * 2, _NUMBER, _FLAG),
    "baton_gate": (*[_PLACE] * 2, *[_COUNT] * 2, _FLAG, _FLAG),
    "baton_rotate": (*[_PLACE] * 4, *[_COUNT] * 4, _FLAG),
    "baton_attend": (*[_PLACE] * 8, *[_COUNT] * 7, _NUMBER, _NUMBER, _FLAG),
}


@dataclass(frozen=True, slots=True)
class TiledWeights:
    """Weights `[outputs, inputs]` in bfloat16 as `Kernels.product` reads them; `bias` `[outputs]` float32."""

    tiles: torch.Tensor
    bias: torch.Tensor | None
    outputs: int

    @staticmethod
    def of(weight: torch.Tensor, bias: torch.Tensor | None) -> "TiledWeights":
        outputs, inputs = weight.shape
        padded = torch.nn.functional.pad(weight.to(torch.bfloat16), (0, 0, 0, -outputs % _TILE))
        tiles = padded.view(-1, 2, _LANES, inputs).permute(0, 3, 2, 1).contiguous()
        return TiledWeights(tiles, None if bias is None else bias.float(), outputs)


@dataclass(frozen=True, slots=True)
class Rows:
    """Which tokens rows of one new token each attend to: `tables` `[n * width]` are their block tables, one after the
    other, `lengths` `[n]`. `members` `[n]` are the rows in the order of `runs` `[m, 3]`: the first of a run, how many
    follow, and how many pages their block tables have in common from the first on. All int64."""

    tables: torch.Tensor
    lengths: torch.Tensor
    members: torch.Tensor
    runs: torch.Tensor


class Kernels:
    """Tensors are in float32 or bfloat16, all of a call alike unless said otherwise, and come out contiguous."""

    def __init__(self, library: ctypes.CDLL) -> None:
        for name, takes in _TAKES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = takes, None
        self._library = library

    def product(self, inputs: torch.Tensor, weights: TiledWeights) -> torch.Tensor:
        """`[n, outputs]` of `[n, inputs]` in bfloat16; sums in float32."""
        inputs = inputs.contiguous()
        rows, depth = inputs.shape
        outputs = inputs.new_empty(rows, weights.outputs)
        bias = None if weights.bias is None else weights.bias.data_ptr()
        self._library.baton_product(
            inputs.data_ptr(), weights.tiles.data_ptr(), bias, outputs.data_ptr(), rows, depth, weights.outputs
        )
        return outputs

    def norm(self, inputs: torch.Tensor, weights: torch.Tensor, epsilon: float) -> torch.Tensor:
        """RMS norm over the last dimension; `weights` are float32."""
        inputs = inputs.contiguous()
        outputs = torch.empty_like(inputs)
        width = inputs.shape[-1]
        rows = inputs.numel() // width
        self._library.baton_norm(
            inputs.data_ptr(), weights.data_ptr(), outputs.data_ptr(), rows, width, epsilon, _wide(inputs)
        )
        return outputs

    def gate(self, inputs: torch.Tensor, *, smooth: bool) -> torch.Tensor:
        """`silu(gate) * up` of `[..., gate and up]`, or with `smooth` that of GELU by tanh."""
        inputs = inputs.contiguous()
        width = inputs.shape[-1] // 2
        outputs = inputs.new_empty(*inputs.shape[:-1], width)
        rows = inputs.numel() // (2 * width)
        self._library.baton_gate(inputs.data_ptr(), outputs.data_ptr(), rows, width, smooth, _wide(inputs))
        return outputs

    def rotate(self, heads: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        """`[tokens, heads, dim]`, each half of a head turned with the other by the angles `[tokens, dim]`."""
        tokens, count, dim = heads.shape
        if heads.stride()[1:] != (dim, 1):
            heads = heads.contiguous()
        cosines, sines = cosines.contiguous(), sines.contiguous()
        outputs = heads.new_empty(tokens, count, dim)
        places = (heads.data_ptr(), cosines.data_ptr(), sines.data_ptr(), outputs.data_ptr())
        self._library.baton_rotate(*places, tokens, count, dim, heads.stride(0), _wide(heads))
        return outputs

    def attend(
        self,
        queries: torch.Tensor,
        pages: tuple[torch.Tensor, torch.Tensor],
        rows: Rows,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """`[n, heads, head_dim]` of as many queries, over one layer's keys and values where they lie, each
        `[pages, page_tokens, kv_heads, head_dim]`; head_dim is a multiple of 16."""
        queries = queries.contiguous()
        outputs = torch.empty_like(queries)
        count, heads, dim = queries.shape
        _, page_tokens, kv_heads, _ = pages[0].shape
        tensors = (queries, *pages, outputs, rows.tables, rows.lengths, rows.members, rows.runs)
        self._library.baton_attend(
            *(tensor.data_ptr() for tensor in tensors),
            len(rows.runs),
            len(rows.tables) // count,
            page_tokens,
            heads,
            kv_heads,
            dim,
            window or 0,
            scaling,
            softcap or 0.0,
            _wide(queries),
        )
        return outputs

    @staticmethod
    def attends(pages: tuple[torch.Tensor, torch.Tensor]) -> bool:
        """Whether `attend` reads such pages."""
        keys = pages[0]
        return keys.shape[-1] % _LANES == 0 and keys.is_contiguous() and pages[1].is_contiguous()


def _wide(tensor: torch.Tensor) -> bool:
    assert tensor.dtype in (torch.float32, torch.bfloat16)
    return tensor.dtype is torch.float32


@cache
def kernels() -> Kernels | None:
    """Those of this machine; None where they cannot be compiled."""
    library = compiled()
    return None if library is None else Kernels(library)
