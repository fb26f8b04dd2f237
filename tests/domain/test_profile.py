"""What is learnt from an engine's steps: how long prompts and decode steps take."""

import pytest

from runtime.domain.profile import Profile, Speedometer


def test_nothing_is_known_before_the_first_step() -> None:
    assert Speedometer().profile() == Profile()


def test_a_steady_engine_is_measured_as_it_is() -> None:
    speed = Speedometer()
    for _ in range(50):
        speed.ran(512, 0, 512, 51.2)
        speed.ran(0, 3, 0, 7.0)
        speed.ran(0, 8, 0, 9.0)
    told = speed.profile()
    assert dict(told.prefill) == pytest.approx({256: 25.6, 512: 51.2})
    assert dict(told.decode) == pytest.approx({4: 7.0, 8: 9.0})


def test_a_longer_prompt_costs_more_for_each_of_its_later_tokens() -> None:
    speed = Speedometer()
    for reached, ms in ((512, 51.2), (1024, 102.4), (2048, 204.8)):
        speed.ran(512, 0, reached, ms)
    line = dict(speed.profile().prefill)
    assert line[512] == pytest.approx(51.2)
    assert line[1024] - line[512] == pytest.approx(102.4)
    assert line[2048] - line[1024] == pytest.approx(1024 * 0.4)


def test_those_who_decode_beside_a_prefill_are_not_counted_as_its_time() -> None:
    speed = Speedometer()
    speed.ran(0, 4, 0, 10.0)
    speed.ran(256, 4, 256, 35.6)
    assert dict(speed.profile().prefill) == pytest.approx({256: 25.6})


def test_a_few_tokens_say_nothing_of_how_fast_prompts_are() -> None:
    speed = Speedometer()
    speed.ran(3, 0, 400, 20.0)
    assert speed.profile().prefill == ()


def test_an_engine_that_slows_down_is_believed_soon() -> None:
    speed = Speedometer()
    for ms in [10.0] * 20 + [20.0] * 20:
        speed.ran(0, 1, 0, ms)
        speed.ran(256, 0, 256, ms)
    told = speed.profile()
    assert dict(told.decode)[1] == pytest.approx(20.0, rel=0.02)
    assert dict(told.prefill)[256] == pytest.approx(20.0, rel=0.02)


def test_the_line_rises_and_what_was_skipped_is_as_fast_as_what_is_known_before_it() -> None:
    speed = Speedometer()
    speed.ran(512, 0, 512, 51.2)
    speed.ran(512, 0, 4000, 512.0)
    line = speed.profile().prefill
    assert [tokens for tokens, _ in line] == [256, 512, 1024, 2048, 4096]
    assert dict(line)[2048] == pytest.approx(204.8)
    assert [ms for _, ms in line] == sorted(ms for _, ms in line)
