"""Loading weights: complete and of the right shapes, or refused with the tensors' names."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime.errors import ModelError
from runtime.model.checkpoint import CONFIG_FILE, WEIGHTS_FILE, open_checkpoint
from runtime.model.loading import load_model
from runtime.model.synthetic import make_llama


def rewrite(llama: Path, to: Path, change: dict[str, torch.Tensor | None]) -> Path:
    """A copy with some tensors replaced, added, or (None) dropped."""
    shutil.copytree(llama, to)
    tensors = load_file(llama / WEIGHTS_FILE) | change
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, to / WEIGHTS_FILE, metadata={"format": "pt"})
    return to


def test_weights_arrive_as_stored(llama: Path) -> None:
    model = load_model(open_checkpoint(llama), torch.float32, "eager")
    stored = load_file(llama / WEIGHTS_FILE)
    loaded = model.state_dict()
    assert set(stored) <= set(loaded)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in stored.items())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_weights_are_converted_to_the_wanted_dtype(llama: Path) -> None:
    model = load_model(open_checkpoint(llama), torch.bfloat16, "eager")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_sharded_checkpoint_loads_the_same(llama: Path, tmp_path: Path) -> None:
    make_llama(tmp_path / "sharded", max_shard_size="100KB")
    whole = load_model(open_checkpoint(llama), torch.float32, "eager").state_dict()
    sharded = load_model(open_checkpoint(tmp_path / "sharded"), torch.float32, "eager").state_dict()
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)


def test_a_tied_checkpoint_needs_no_head_of_its_own(tmp_path: Path) -> None:
    make_llama(tmp_path / "tied", tied=True)
    checkpoint = open_checkpoint(tmp_path / "tied")
    assert "lm_head.weight" not in checkpoint.tensors
    state = load_model(checkpoint, torch.float32, "eager").state_dict()
    assert torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])


def test_a_missing_tensor_is_named(llama: Path, tmp_path: Path) -> None:
    path = rewrite(llama, tmp_path / "less", {"model.norm.weight": None})
    with pytest.raises(ModelError, match=r"1 tensors are missing: model\.norm\.weight"):
        load_model(open_checkpoint(path), torch.float32, "eager")


def test_an_unexpected_tensor_is_named(llama: Path, tmp_path: Path) -> None:
    path = rewrite(llama, tmp_path / "more", {"model.extra.weight": torch.zeros(2)})
    with pytest.raises(ModelError, match=r"1 tensors are unexpected: model\.extra\.weight"):
        load_model(open_checkpoint(path), torch.float32, "eager")


def test_the_frequencies_that_old_checkpoints_carry_are_no_reason_to_refuse(llama: Path, tmp_path: Path) -> None:
    path = rewrite(llama, tmp_path / "old", {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    load_model(open_checkpoint(path), torch.float32, "eager")


def test_a_tensor_of_another_shape_is_named_with_both_shapes(llama: Path, tmp_path: Path) -> None:
    path = rewrite(llama, tmp_path / "odd", {"model.norm.weight": torch.ones(65)})
    with pytest.raises(
        ModelError, match=r"tensor model\.norm\.weight has shape \[65\], the configuration wants \[64\]"
    ):
        load_model(open_checkpoint(path), torch.float32, "eager")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "many"}, "hidden_size"),
        ({"num_attention_heads": 3}, "not a multiple of the number of attention heads"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "Missing required keys in `rope_parameters`"),
        ({"hidden_act": "invented"}, "invented"),
    ],
)
def test_a_configuration_that_no_model_can_be_built_from_is_named(
    llama: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = Path(shutil.copytree(llama, tmp_path / "odd"))
    config = json.loads((path / CONFIG_FILE).read_text()) | changes
    (path / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        load_model(open_checkpoint(path), torch.float32, "eager")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["InventedForCausalLM"]}, "InventedForCausalLM is not supported: transformers .* knows no"),
        ({"architectures": ["T5ForConditionalGeneration"]}, "T5ForConditionalGeneration is not supported"),
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM is not supported: it keeps a state beside keys"),
        (
            {"architectures": ["BloomForCausalLM"]},
            "BloomForCausalLM is not supported: its attention cannot be replaced",
        ),
        ({"architectures": ["Qwen3ForCausalLM"]}, "model_type is llama, that of Qwen3ForCausalLM is qwen3"),
    ],
)
def test_an_architecture_that_cannot_be_run_is_named(
    llama: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = Path(shutil.copytree(llama, tmp_path / "odd"))
    config = json.loads((path / CONFIG_FILE).read_text()) | changes
    (path / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        load_model(open_checkpoint(path), torch.float32, "eager")


def test_what_only_the_defaults_of_a_class_bring_is_refused_too(llama: Path, tmp_path: Path) -> None:
    """Phi-3 takes yarn for longrope."""
    path = Path(shutil.copytree(llama, tmp_path / "phi"))
    config = json.loads((path / CONFIG_FILE).read_text())
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    config |= {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "pad_token_id": None}
    config["rope_parameters"] = {"rope_type": "yarn", "rope_theta": 1e4} | factors
    (path / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(ModelError, match="the RoPE type longrope is not supported"):
        load_model(open_checkpoint(path), torch.float32, "eager")


def test_code_that_a_checkpoint_brings_along_is_never_run(llama: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(llama, tmp_path / "remote"))
    config = json.loads((path / CONFIG_FILE).read_text())
    config["auto_map"] = {"AutoConfig": "trap.Config", "AutoModelForCausalLM": "trap.Model"}
    (path / CONFIG_FILE).write_text(json.dumps(config))
    (path / "trap.py").write_text("raise SystemExit('remote code ran')")
    load_model(open_checkpoint(path), torch.float32, "eager")
