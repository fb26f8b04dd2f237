"""`baton generate` gives the answer to stdout, and tells what happened for it on stderr."""

import json

import pytest
from typer.testing import CliRunner

from runtime.cli.app import app
from runtime.domain.sequence import Sampling
from runtime.engine.simulated import SimulatedTokenizer, continuation
from runtime.mesh.listening import free_ports

RUNNER = CliRunner()


def expected(prompt: list[int], tokens: int) -> str:
    decoder = SimulatedTokenizer().decoder()
    answer = continuation(prompt, Sampling(max_tokens=tokens, temperature=0.0))
    return "".join(decoder.push(token) for token in answer)


def test_the_answer_alone_is_on_stdout(target: str) -> None:
    result = RUNNER.invoke(app, ["generate", "Hello.", "--raw", "--max-tokens", "5", "--target", target])
    assert result.exit_code == 0
    assert result.stdout == expected(SimulatedTokenizer().encode("Hello."), 5) + "\n"
    assert "TTFT" in result.stderr
    assert "6 tokens prefilled by the decode worker" in result.stderr


def test_a_prompt_is_a_users_message_unless_it_is_raw(target: str) -> None:
    prompt = SimulatedTokenizer().render_chat([{"role": "user", "content": "Hello."}])
    result = RUNNER.invoke(app, ["generate", "Hello.", "--max-tokens", "5"], env={"BATON_TARGET": target})
    assert result.stdout == expected(prompt, 5) + "\n"


def test_a_long_prompt_from_stdin_tells_who_prefilled_it(target: str) -> None:
    said = "A long way to go. " * 20
    asked = ["generate", "-", "--raw", "--max-tokens", "3", "--target", target]
    result = RUNNER.invoke(app, asked, input=said)
    assert result.stdout == expected(SimulatedTokenizer().encode(said), 3) + "\n"
    assert f"prefill-0 prefilled {len(said) - 1} tokens" in result.stderr
    assert "12 pages, 2.8 KiB, moved by shm" in result.stderr


def test_json_holds_the_answer_and_all_figures(target: str) -> None:
    asked = ["generate", "Once more. " * 10, "--raw", "--max-tokens", "4", "--json", "--target", target]
    facts = json.loads(RUNNER.invoke(app, asked).stdout)
    assert facts["text"] == expected(SimulatedTokenizer().encode("Once more. " * 10), 4)
    assert (facts["tokens"], facts["finish"], facts["attempts"]) == (4, "length", 1)
    assert facts["handoff"]["moved_tokens"] == facts["handoff"]["prompt_tokens"] - 1
    assert facts["ttft_ms"] > 0
    assert facts["itl_ms"] > 0


def test_a_seed_gives_the_same_answer_again(target: str) -> None:
    asked = ["generate", "Dice.", "--temperature", "1", "--target", target, "--seed"]
    first, again, other = (RUNNER.invoke(app, [*asked, seed]).stdout for seed in ("1", "1", "2"))
    assert first == again != other


def test_where_nobody_listens_the_way_to_a_mesh_is_told() -> None:
    nowhere = f"127.0.0.1:{free_ports(1)[0]}"
    result = RUNNER.invoke(app, ["generate", "Hello.", "--target", nowhere])
    assert result.exit_code == 1
    assert f"no mesh answers at {nowhere}: start a mesh with `baton up`" in result.stderr


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--max-tokens", "0"], "max_tokens must be at least 1, got 0"),
        (["--temperature", "nan"], "temperature must be between 0 and 2, got nan"),
        (["--model", "gpt"], "model 'gpt' is not served"),
    ],
)
def test_a_refused_request_names_its_field(target: str, options: list[str], complaint: str) -> None:
    result = RUNNER.invoke(app, ["generate", "Hello.", "--target", target, *options])
    assert (result.exit_code, result.stdout) == (1, "")
    assert complaint in result.stderr


def test_an_empty_prompt_is_refused(target: str) -> None:
    result = RUNNER.invoke(app, ["generate", "", "--raw", "--target", target])
    assert result.exit_code == 1
    assert "prompt is empty" in result.stderr
