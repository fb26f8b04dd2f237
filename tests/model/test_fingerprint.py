"""Fingerprints: any byte that matters changes them, and nothing that does not matter does."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.errors import ModelError
from runtime.model.checkpoint import CONFIG_FILE, WEIGHTS_FILE, open_checkpoint
from runtime.model.fingerprint import kv_fingerprint, serving_fingerprint
from runtime.model.synthetic import make_llama


def both(path: Path) -> tuple[str, str]:
    checkpoint = open_checkpoint(path)
    kv = kv_fingerprint(checkpoint)
    return kv, serving_fingerprint(checkpoint, kv)


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "copy"))


def edit_json(file: Path, change: Callable[[dict[str, object]], object], indent: int | None = None) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content, indent=indent))


def test_a_fingerprint_is_128_bits_of_hexadecimal(llama: Path) -> None:
    assert [len(bytes.fromhex(fingerprint)) for fingerprint in both(llama)] == [16, 16]


def test_a_copy_is_the_same_model(llama: Path, copy: Path) -> None:
    assert both(llama) == both(copy)


def test_resharding_changes_nothing(llama: Path, tmp_path: Path) -> None:
    make_llama(tmp_path / "sharded", max_shard_size="100KB")
    assert both(tmp_path / "sharded") == both(llama)


@pytest.mark.parametrize("place", ["first", "last"])
def test_one_flipped_bit_of_one_weight_changes_both(llama: Path, copy: Path, place: str) -> None:
    tensors = sorted(open_checkpoint(copy).tensors.values(), key=lambda tensor: tensor.offset)
    at = tensors[0].offset if place == "first" else tensors[-1].offset + tensors[-1].size - 1
    raw = bytearray((copy / WEIGHTS_FILE).read_bytes())
    raw[at] ^= 1
    (copy / WEIGHTS_FILE).write_bytes(raw)
    assert not set(both(copy)) & set(both(llama))


@pytest.mark.parametrize(("was", "becomes"), [(b"model.norm.weight", b"model.norm.weighs"), (b'"F32"', b'"I32"')])
def test_the_same_bytes_under_another_name_or_type_are_another_model(
    llama: Path, copy: Path, was: bytes, becomes: bytes
) -> None:
    raw = (copy / WEIGHTS_FILE).read_bytes()
    (copy / WEIGHTS_FILE).write_bytes(raw.replace(was, becomes, 1))
    assert both(copy)[0] != both(llama)[0]


@pytest.mark.parametrize(
    "change",
    [
        {"rope_parameters": {"rope_theta": 1e4}},
        {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}},
        {"architectures": ["MistralForCausalLM"]},
        {"sliding_window": 40},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"text_config": {"rope_parameters": {"rope_theta": 1e4}}},
    ],
)
def test_what_decides_keys_and_values_makes_another_model(llama: Path, copy: Path, change: dict[str, object]) -> None:
    edit_json(copy / CONFIG_FILE, lambda config: config.update(change))
    assert not set(both(copy)) & set(both(llama))


def test_a_nested_dtype_changes_nothing(copy: Path) -> None:
    edit_json(copy / CONFIG_FILE, lambda config: config.update(text_config={"hidden_size": 64}))
    before = both(copy)
    edit_json(copy / CONFIG_FILE, lambda config: config.update(text_config={"hidden_size": 64, "dtype": "bfloat16"}))
    assert both(copy) == before


def test_who_wrote_the_configuration_and_with_what_dtype_changes_nothing(llama: Path, copy: Path) -> None:
    edit_json(copy / CONFIG_FILE, lambda config: config.update(transformers_version="0", dtype="bfloat16"), indent=4)
    assert both(copy) == both(llama)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("tokenizer.json", lambda content: content["model"]["vocab"].update({"new": 511})),
        ("tokenizer_config.json", lambda content: content.update(eos_token="<|im_start|>")),
        ("generation_config.json", lambda content: content.update(eos_token_id=[1, 2])),
    ],
)
def test_another_tokenizer_serves_otherwise_on_the_same_kv(
    llama: Path, copy: Path, file: str, change: Callable[[dict[str, object]], object]
) -> None:
    edit_json(copy / file, change)
    kv, serving = both(copy)
    assert kv == both(llama)[0]
    assert serving != both(llama)[1]


def test_another_chat_template_serves_otherwise(llama: Path, copy: Path) -> None:
    with (copy / "chat_template.jinja").open("a") as template:
        template.write(" ")
    assert both(copy)[0] == both(llama)[0]
    assert both(copy)[1] != both(llama)[1]


def test_the_formatting_of_the_tokenizer_file_changes_nothing(llama: Path, copy: Path) -> None:
    edit_json(copy / "tokenizer.json", lambda content: None)
    assert (copy / "tokenizer.json").read_bytes() != (llama / "tokenizer.json").read_bytes()
    assert both(copy) == both(llama)


def test_a_file_cut_short_after_it_was_opened_is_an_error(copy: Path) -> None:
    checkpoint = open_checkpoint(copy)
    weights = copy / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelError, match="truncated while tensor"):
        kv_fingerprint(checkpoint)
