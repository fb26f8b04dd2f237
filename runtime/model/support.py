"""Which configurations Baton's attention can serve, told by the configuration alone. Needs no torch, asks no weights.

What a configuration does not say is found out by `runtime.engine.probing`, when the model is there.
"""

from collections.abc import Iterator, Mapping
from typing import Any

# The others pick their frequencies from the longest sequence of a batch, so a page would depend on its neighbours.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
LAYER_TYPES = ("full_attention", "sliding_attention")
# Layers that keep one state for all tokens and not something of each.
_STATEFUL = ("mamba", "mamba2", "linear_attention", "conv", "recurrent")
# Fields whose presence, with anything but None, False or 0, means what pages of keys and values cannot hold.
_TELLING = {
    "is_encoder_decoder": "it is an encoder with a decoder",
    "add_cross_attention": "it attends to another model's states",
    "use_bidirectional_attention": "it attends in both directions",
    "kv_lora_rank": "its keys and values are latent (MLA)",
    "attention_chunk_size": "it attends within chunks",
    "num_kv_shared_layers": "some layers use the keys and values of others",
    "mamba_d_state": "it has state-space layers, whose state cannot be paged",
    "ssm_state_size": "it has state-space layers, whose state cannot be paged",
    "linear_num_key_heads": "it has layers of linear attention, whose state cannot be paged",
}


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why a configuration, as config.json has it, cannot be served; None when nothing in it speaks against."""
    return next(_reasons(config), None)


def _reasons(config: Mapping[str, Any]) -> Iterator[str]:
    text = text_config(config)
    for field, meaning in _TELLING.items():
        value = config.get(field) or text.get(field)
        if value:
            yield f"{meaning} ({field}: {value}), which is not supported"
    for layer_type in text.get("layer_types") or ():
        if layer_type not in LAYER_TYPES:
            paged = ": their state cannot be paged" if layer_type in _STATEFUL else ""
            yield f"layers of type {layer_type} are not supported{paged}; there are {', '.join(LAYER_TYPES)}"
    for rope_type in _rope_types(config):
        if rope_type not in ROPE_TYPES:
            yield f"the RoPE type {rope_type} is not supported; there are {', '.join(ROPE_TYPES)}"
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method", "unnamed") if isinstance(quantization, dict) else quantization
        yield f"weights quantized with {method} are not supported yet"


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part that describes the language model: models that also see or hear nest it."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def _rope_types(content: Mapping[str, Any]) -> Iterator[str]:
    """Wherever they are declared: at the top, in the text's part, for each type of layer."""
    for field, value in content.items():
        if field in ("rope_parameters", "rope_scaling") and value is not None:
            yield from _declared(field, value)
        elif isinstance(value, dict):
            yield from _rope_types(value)


def _declared(field: str, value: object) -> Iterator[str]:
    """Older configurations say `type`. A layer type may have none."""
    if not isinstance(value, dict):
        yield f"{value!r} in {field}"
        return
    declared = value.get("rope_type", value.get("type"))
    if declared is not None:
        yield str(declared)
    for group in value.values():
        if isinstance(group, dict):
            yield from _declared(field, group)
