"""The model that benches compute with: 146 million parameters with random weights, in what this CPU computes fast."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from runtime.config import Config, MeshConfig

VOCAB = 4096
_FAST_BFLOAT16 = {"amx_bf16", "avx512_bf16", "bf16"}


def fast_dtype() -> Literal["bfloat16", "float32"]:
    """What this CPU multiplies fast; where bfloat16 is emulated it is several times slower than float32."""
    flags = set(Path("/proc/cpuinfo").read_text().split()) if Path("/proc/cpuinfo").exists() else set()
    return "bfloat16" if flags & _FAST_BFLOAT16 else "float32"


def llama_146m() -> Path:
    """Made once and kept in the state folder."""
    path = Config(mesh=MeshConfig(name="bench")).state / "llama-146m"
    if not path.exists():
        from runtime.model.synthetic import make_llama_146m

        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent) as unfinished:
            make_llama_146m(Path(unfinished) / "model")
            (Path(unfinished) / "model").rename(path)
    return path


def stretched_146m(folder: Path, tokens: int) -> Path:
    """The same with a context of so many tokens, in a folder of its own."""
    folder.mkdir()
    for file in llama_146m().iterdir():
        (folder / file.name).symlink_to(file)
    shape = folder / "config.json"
    content = json.loads(shape.read_bytes())
    shape.unlink()
    shape.write_text(json.dumps(content | {"max_position_embeddings": tokens}))
    return folder
