"""Opening a checkpoint: what is there is listed, what is damaged or unknown is refused by name before it is used."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors

from runtime.errors import ModelError
from runtime.model.checkpoint import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, open_checkpoint
from runtime.model.shards import read_header
from runtime.model.synthetic import make_llama


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "copy"))


def configure(path: Path, **changes: object) -> None:
    config = json.loads((path / CONFIG_FILE).read_text()) | changes
    (path / CONFIG_FILE).write_text(json.dumps(config))


def edit_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = (path / WEIGHTS_FILE).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    change(header)
    encoded = json.dumps(header).encode()
    (path / WEIGHTS_FILE).write_bytes(struct.pack("<Q", len(encoded)) + encoded + raw[8 + length :])


def test_an_opened_checkpoint_lists_what_the_library_lists(llama: Path) -> None:
    checkpoint = open_checkpoint(llama)
    assert checkpoint.architecture == "LlamaForCausalLM"
    with safetensors.safe_open(llama / WEIGHTS_FILE, framework="pt") as reference:
        assert set(checkpoint.tensors) == set(reference.keys())
        for name, tensor in checkpoint.tensors.items():
            piece = reference.get_slice(name)
            assert (list(tensor.shape), tensor.dtype) == (piece.get_shape(), piece.get_dtype())


def test_a_sharded_checkpoint_has_the_same_tensors(llama: Path, tmp_path: Path) -> None:
    make_llama(tmp_path / "sharded", max_shard_size="100KB")
    sharded = open_checkpoint(tmp_path / "sharded")
    assert len({tensor.file for tensor in sharded.tensors.values()}) > 1
    whole = open_checkpoint(llama)
    assert {name: tensor.shape for name, tensor in sharded.tensors.items()} == {
        name: tensor.shape for name, tensor in whole.tensors.items()
    }


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere: there is no such model directory"):
        open_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "message"),
    [(CONFIG_FILE, r"there is no config\.json"), (WEIGHTS_FILE, r"there are no weights: neither model\.safetensors")],
)
def test_a_missing_file_is_named(copy: Path, file: str, message: str) -> None:
    (copy / file).unlink()
    with pytest.raises(ModelError, match=message):
        open_checkpoint(copy)


def test_a_configuration_that_is_not_json_is_refused(copy: Path) -> None:
    (copy / CONFIG_FILE).write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: is not JSON"):
        open_checkpoint(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": []}, "architectures is missing or empty"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "RoPE type dynamic is not supported"),
        ({"rope_parameters": None, "rope_scaling": {"type": "longrope"}}, "RoPE type longrope is not supported"),
        ({"rope_parameters": {"full_attention": {"rope_type": "dynamic"}}}, "RoPE type dynamic is not supported"),
        ({"rope_parameters": "none"}, "the RoPE type 'none' in rope_parameters is not supported"),
        ({"text_config": {"rope_parameters": {"rope_type": "dynamic"}}}, "RoPE type dynamic is not supported"),
        (
            {"layer_types": ["full_attention", "linear_attention"]},
            "layers of type linear_attention are not supported: their state cannot be paged",
        ),
        ({"layer_types": ["mamba"]}, "layers of type mamba are not supported: their state cannot be paged"),
        ({"layer_types": ["chunked_attention"]}, "layers of type chunked_attention are not supported; there are"),
        ({"is_encoder_decoder": True}, "an encoder with a decoder"),
        ({"use_bidirectional_attention": True}, "attends in both directions"),
        ({"kv_lora_rank": 512}, r"latent \(MLA\) \(kv_lora_rank: 512\), which is not supported"),
        ({"text_config": {"num_kv_shared_layers": 15}}, "some layers use the keys and values of others"),
        ({"attention_chunk_size": 8192}, "attends within chunks"),
        ({"mamba_d_state": 16}, r"state-space layers, whose state cannot be paged \(mamba_d_state: 16\)"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized with gptq are not supported yet"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(copy: Path, changes: dict[str, object], message: str) -> None:
    configure(copy, **changes)
    with pytest.raises(ModelError, match=message):
        open_checkpoint(copy)


@pytest.mark.parametrize("left", [0, 7, 8, 100, -1])
def test_a_truncated_file_is_refused_before_it_is_read(copy: Path, left: int) -> None:
    weights = copy / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:left])
    with pytest.raises(ModelError, match=r"model\.safetensors: truncated"):
        open_checkpoint(copy)


def test_bytes_after_the_last_tensor_are_refused(copy: Path) -> None:
    with (copy / WEIGHTS_FILE).open("ab") as weights:
        weights.write(b"\0")
    with pytest.raises(ModelError, match=r"corrupt: it has \d+ bytes, its header describes \d+"):
        open_checkpoint(copy)


def test_an_absurd_header_length_is_refused(copy: Path) -> None:
    weights = copy / WEIGHTS_FILE
    weights.write_bytes(struct.pack("<Q", 1 << 60) + weights.read_bytes()[8:])
    with pytest.raises(ModelError, match=r"corrupt: a header of \d+ bytes"):
        open_checkpoint(copy)


def test_a_header_that_is_not_json_is_refused(copy: Path) -> None:
    weights = copy / WEIGHTS_FILE
    raw = weights.read_bytes()
    weights.write_bytes(raw[:8] + b"!" + raw[9:])
    with pytest.raises(ModelError, match="corrupt: its header is not JSON"):
        open_checkpoint(copy)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("shape", [3, 3], r"tensor model\.norm\.weight of F32 \[3, 3\] takes 36 bytes"),
        ("dtype", "F7", r"entry of tensor model\.norm\.weight is not understood"),
        ("data_offsets", [0, 256], r"tensor .* begins at byte"),
        ("data_offsets", "x", r"entry of tensor model\.norm\.weight is not understood"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(copy: Path, field: str, value: object, message: str) -> None:
    edit_header(copy, lambda header: header["model.norm.weight"].__setitem__(field, value))
    with pytest.raises(ModelError, match=message):
        open_checkpoint(copy)


def test_an_index_that_names_a_missing_shard_is_refused(tmp_path: Path) -> None:
    make_llama(tmp_path / "sharded", max_shard_size="100KB")
    gone = sorted((tmp_path / "sharded").glob("model-*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ModelError, match=rf"names {gone.name}, which is not there"):
        open_checkpoint(tmp_path / "sharded")


def test_an_index_that_places_a_tensor_wrongly_is_refused(tmp_path: Path) -> None:
    make_llama(tmp_path / "sharded", max_shard_size="100KB")
    index = json.loads((tmp_path / "sharded" / INDEX_FILE).read_text())
    index["weight_map"]["model.invented"] = index["weight_map"]["model.norm.weight"]
    (tmp_path / "sharded" / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"places tensor model\.invented in .*, which does not hold it"):
        open_checkpoint(tmp_path / "sharded")


def test_tensors_lie_in_the_file_without_gaps(llama: Path) -> None:
    tensors = sorted(read_header(llama / WEIGHTS_FILE), key=lambda tensor: tensor.offset)
    ends = [tensor.offset + tensor.size for tensor in tensors]
    assert [tensor.offset for tensor in tensors[1:]] == ends[:-1]
    assert ends[-1] == (llama / WEIGHTS_FILE).stat().st_size
