"""A spec is read from a checkpoint's files, and is what transformers makes of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig

from runtime.domain.spec import ModelSpec
from runtime.errors import ModelError
from runtime.model.checkpoint import open_checkpoint
from runtime.model.recall.shipped import SHIPPED_MODEL
from runtime.model.spec import checkpoint_spec
from runtime.model.synthetic import make_checkpoint, make_llama, make_qwen
from tests.engine.architectures import ARCHITECTURES, architecture

_TORCHLESS = """
import sys
from pathlib import Path
from runtime.model.checkpoint import open_checkpoint
from runtime.model.spec import checkpoint_spec
checkpoint_spec(open_checkpoint(Path(sys.argv[1])), name="m", dtype="float32", page_tokens=32)
assert "torch" not in sys.modules
"""


@pytest.fixture(params=["llama", "qwen2", "qwen3", "shipped", *ARCHITECTURES])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "shipped":
        return SHIPPED_MODEL
    folder = tmp_path / "checkpoint"
    if request.param in ARCHITECTURES:
        make_checkpoint(folder, architecture(request.param))
    elif request.param == "llama":
        make_llama(folder)
    else:
        make_qwen(folder, generation=int(request.param[-1]))
    return folder


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    make_llama(tmp_path / "llama")
    return tmp_path / "llama"


def spec(path: Path, **settings: object) -> ModelSpec:
    wanted = {"name": "m", "dtype": "bfloat16", "page_tokens": 16} | settings
    return checkpoint_spec(open_checkpoint(path), **wanted)  # type: ignore[arg-type]  # as checkpoint_spec has them


def edit(path: Path, **changes: object) -> None:
    file = path / "config.json"
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_it_is_what_transformers_makes_of_the_same_files(path: Path) -> None:
    config, found = AutoConfig.from_pretrained(path).get_text_config(), spec(path)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    assert (found.layers, found.kv_heads, found.head_dim) == (config.num_hidden_layers, kv_heads, head_dim)
    assert (found.vocab, found.max_tokens) == (config.vocab_size, config.max_position_embeddings)
    assert (found.dtype, found.page_tokens) == ("bfloat16", 16)


def test_a_configuration_of_the_days_before_grouped_attention_has_as_many_heads_for_keys(llama: Path) -> None:
    edit(llama, num_key_value_heads=None, num_attention_heads=2)
    assert spec(llama).kv_heads == 2


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({}, {"dtype": "float16"}, "dtype float16 is not supported; there are float32, bfloat16"),
        ({}, {"max_tokens": 5000}, "max_tokens must be 2 to 4096, got 5000"),
        ({"num_hidden_layers": None}, {}, "num_hidden_layers must be a whole number above 0, got None"),
        ({"vocab_size": "512"}, {}, "vocab_size must be a whole number above 0, got '512'"),
        ({"num_key_value_heads": 3}, {}, "32 rows of model.layers.0.self_attn.k_proj.weight make no 3 heads of 16"),
        ({"head_dim": 8}, {}, "make no 2 heads of 8"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    llama: Path, changes: dict[str, object], settings: dict[str, object], message: str
) -> None:
    edit(llama, **changes)
    with pytest.raises(ModelError, match=message):
        spec(llama, **settings)


def test_fused_projections_contradict_a_wrong_number_of_heads(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "phi3", architecture("phi3"))
    edit(tmp_path / "phi3", num_key_value_heads=4)
    with pytest.raises(ModelError, match=r"128 rows of .*qkv_proj.weight make no 4 heads of 16 for queries and 4 each"):
        spec(tmp_path / "phi3")


def test_one_head_serves_all_queries_where_a_configuration_says_so(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "gpt2", architecture("gpt2"))
    edit(tmp_path / "gpt2", multi_query=True)
    assert (spec(tmp_path / "gpt2").kv_heads, spec(tmp_path / "gpt2").head_dim) == (1, 16)


def test_sizes_that_a_nested_configuration_leaves_out_are_those_of_the_tensors(tmp_path: Path) -> None:
    folder = tmp_path / "nested"
    make_checkpoint(folder, architecture("gemma3-nested"))
    text = json.loads((folder / "config.json").read_text())["text_config"]
    left_out = ("vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    whole = spec(folder)
    edit(folder, text_config={key: value for key, value in text.items() if key not in left_out})
    found = spec(folder)
    assert (found.vocab, found.kv_heads, found.head_dim) == (whole.vocab, whole.kv_heads, whole.head_dim)


def test_reading_it_needs_no_torch() -> None:
    subprocess.run([sys.executable, "-c", _TORCHLESS, str(SHIPPED_MODEL)], check=True, timeout=100)
