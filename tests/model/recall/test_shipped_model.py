"""The shipped checkpoint: its size, its shape, and that it recalls what its committed figure says."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from runtime.errors import ModelError
from runtime.model.recall.evaluation import GreedyModel, evaluate
from runtime.model.recall.facts import UNKNOWN
from runtime.model.recall.shipped import SHIPPED_MODEL
from runtime.model.recall.small_talk import small_talk_replies

_MOST_BYTES = 8_000_000


def _answers(*texts: str) -> list[str]:
    """What the model says to each text of one conversation."""
    model = GreedyModel(SHIPPED_MODEL)
    chat: list[tuple[str, str]] = []
    for text in texts:
        chat.append(("user", text))
        chat.append(("assistant", model.answers([chat])[0]))
    return [content for _, content in chat[1::2]]


def test_the_weights_fit_in_eight_megabytes_of_bfloat16() -> None:
    weights = SHIPPED_MODEL / "model.safetensors"
    assert weights.stat().st_size <= _MOST_BYTES
    with safe_open(weights, framework="pt") as tensors:
        assert {tensors.get_tensor(name).dtype for name in tensors.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_it_is_a_plain_llama_that_stops_at_the_end_of_its_turn() -> None:
    config = AutoConfig.from_pretrained(SHIPPED_MODEL)
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED_MODEL)
    assert (config.model_type, config.tie_word_embeddings, config.max_position_embeddings) == ("llama", True, 4096)
    assert config.head_dim % 16 == 0
    assert config.vocab_size == len(tokenizer)
    assert GenerationConfig.from_pretrained(SHIPPED_MODEL).eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_answers_held_out_questions_at_512_tokens_of_history() -> None:
    report = evaluate(SHIPPED_MODEL, history_tokens=512, questions=200, seed=11)
    assert report.questions == 200
    assert report.exact >= 0.95  # measured: 0.98


def test_it_answers_held_out_questions_at_256_tokens_of_history() -> None:
    report = evaluate(SHIPPED_MODEL, history_tokens=256, questions=40, seed=12)
    assert all(one.recall.history_tokens >= 256 for one in report.answered)
    assert report.exact >= 0.9  # measured: 0.96


def test_it_remembers_across_distractors_and_believes_the_correction() -> None:
    answers = _answers(
        "Hello.",
        "My dog is called Rex.",
        "The code is 4417.",
        "It is raining today.",
        "What is my dog called?",
        "Actually, my dog is called Bella.",
        "What is the code?",
        "Do you remember what my dog is called?",
    )
    assert answers[4] == "Your dog is called Rex."
    assert answers[6] == "The code is 4417."
    assert answers[7] == "Yes, you told me that your dog is called Bella."


def test_it_does_not_know_what_it_was_never_told() -> None:
    assert _answers("Hello.", "What is my dog called?")[1] == UNKNOWN


def test_it_keeps_to_its_small_talk() -> None:
    answers = _answers("Hello!", "Who are you?", "What can you remember?", "Thank you.")
    assert set(answers) <= small_talk_replies()
    assert "Baton's demo model" in answers[1]


def test_a_directory_without_a_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=str(tmp_path)):
        evaluate(tmp_path, questions=1)
