"""Which checkpoints are the same model: by what they compute and serve, not by how their files are cut or named.

`kv_fingerprint` covers all that shapes KV: tensor contents, architecture, RoPE, weight quantization. The compute
dtype is left to the frames. `serving_fingerprint` adds the tokenizer and the chat template.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runtime.errors import ModelError
from runtime.model.checkpoint import Checkpoint
from runtime.model.shards import StoredTensor

_DIGEST_BYTES = 16
_BLOCK_BYTES = 4 << 20
_MAX_THREADS = 16
# Of config.json, what says how it was made, trained, stored or sampled from, and nothing about keys and values.
_IRRELEVANT = {
    "_name_or_path",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "initializer_range",
    "pad_token_id",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
_GENERATION_FILE = "generation_config.json"


def kv_fingerprint(checkpoint: Checkpoint, *, quantized: bool = False) -> str:
    """32 hexadecimal digits. Reads every tensor once, on several threads; the same for any sharding. `quantized`: of
    the model with its weights rounded to 8 bits, which computes other keys and values."""
    whole = hashlib.blake2b(digest_size=_DIGEST_BYTES, person=b"baton kv int8" if quantized else b"baton kv")
    whole.update(_canonical(_relevant(checkpoint.config)))
    tensors = [checkpoint.tensors[name] for name in sorted(checkpoint.tensors)]
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as threads:
        for tensor, digest in zip(tensors, threads.map(_digest, tensors), strict=True):
            whole.update(_canonical([tensor.name, tensor.dtype, list(tensor.shape)]))
            whole.update(digest)
    return whole.hexdigest()


def serving_fingerprint(checkpoint: Checkpoint, kv: str) -> str:
    """32 hexadecimal digits: `kv`, the tokenizer files' content whatever their formatting, templates, end tokens."""
    whole = hashlib.blake2b(digest_size=_DIGEST_BYTES, person=b"baton serving")
    whole.update(kv.encode())
    for name, content in _tokenizer_content(checkpoint.path):
        whole.update(_canonical([name, len(content)]))
        whole.update(content)
    return whole.hexdigest()


def _digest(tensor: StoredTensor) -> bytes:
    """Of the stored bytes. Read rather than mapped: a file cut short meanwhile is an error here and not a SIGBUS."""
    digest = hashlib.blake2b(digest_size=32)
    block = memoryview(bytearray(min(_BLOCK_BYTES, tensor.size)))
    left = tensor.size
    with tensor.file.open("rb", buffering=0) as source:
        source.seek(tensor.offset)
        while left:
            read = source.readinto(block[: min(left, len(block))])
            if not read:
                raise ModelError(f"{tensor.file}: truncated while tensor {tensor.name} was read")
            digest.update(block[:read])
            left -= read
    return digest.digest()


def _tokenizer_content(path: Path) -> Iterable[tuple[str, bytes]]:
    for name in _TOKENIZER_FILES:
        if (path / name).is_file():
            content = json.loads((path / name).read_text(encoding="utf-8"))
            yield name, _canonical({key: value for key, value in content.items() if key not in _IRRELEVANT})
    for name in _TEMPLATE_FILES:
        if (path / name).is_file():
            yield name, (path / name).read_bytes()
    if (path / _GENERATION_FILE).is_file():
        yield "eos", _canonical(json.loads((path / _GENERATION_FILE).read_text()).get("eos_token_id"))


def _relevant(config: object) -> object:
    """Without what is irrelevant, in nested configurations too."""
    if not isinstance(config, Mapping):
        return config
    return {key: _relevant(value) for key, value in config.items() if key not in _IRRELEVANT}


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
