"""How often and how soon a dead worker is started again."""

from runtime.domain.restarts import RestartPolicy, Restarts

POLICY = RestartPolicy(first_s=1.0, most_s=4.0, deaths=5, window_s=100.0)


def test_a_first_death_costs_no_waiting() -> None:
    assert Restarts(POLICY).died(0.0) == 0.0


def test_a_crash_loop_is_slowed_down_and_then_ended() -> None:
    restarts = Restarts(POLICY)
    assert [restarts.died(second) for second in range(6)] == [0.0, 1.0, 2.0, 4.0, 4.0, None]


def test_deaths_far_apart_are_no_crash_loop() -> None:
    restarts = Restarts(POLICY)
    assert [restarts.died(101.0 * turn) for turn in range(50)] == [0.0] * 50
