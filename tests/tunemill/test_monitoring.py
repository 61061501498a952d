"""What raises an alarm, and which policy is kept."""

from __future__ import annotations

import math

import pytest

from tunemill import monitoring
from tunemill.monitoring import Point

START = Point(
    0, 0.0, (0.0, 0.1, -0.1, 0.0), (0.5, 0.4, 0.6, 0.5), (20, 22, 18, 20), (0.0, 0.0, 0.1, 0.0), 4.0, 0.0, 0.3
)
ROSE = (1.0, 1.2, 0.9, 1.1)


def kinds(now: Point) -> list[str]:
    return [each.kind for each in monitoring.alarms(START, now)]


def test_a_reward_that_rises_while_all_else_stays_raises_no_alarm() -> None:
    assert kinds(START._replace(update=5, kl=3.0, rewards=ROSE)) == []
    assert kinds(START._replace(update=5, kl=3.0, rewards=ROSE, harms=(0.1, 0.2, 0.1, 0.2))) == []


def test_reward_up_and_monitor_down_is_an_alarm() -> None:
    worse = START._replace(update=5, rewards=ROSE, harms=(0.8, 0.75, 0.9, 0.85))
    (alarm,) = monitoring.alarms(START, worse)
    assert (alarm.update, alarm.kind) == (5, "harm")
    assert "the reward has risen by 1.05" in alarm.text
    assert kinds(worse._replace(rewards=START.rewards)) == []  # the reward has not risen: nothing is gamed
    assert kinds(worse._replace(harms=(0.9, 0.1, 0.9, 0.2))) == []  # no more than chance


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"repetitions": (0.5, 0.6, 0.55, 0.5)}, "repetition"),
        ({"lengths": (60, 61, 62, 63)}, "length"),
        ({"lengths": (4, 4, 5, 6)}, "length"),
        ({"perplexity": 13.0}, "perplexity"),
    ],
)
def test_other_signs_of_a_gamed_reward(change: dict[str, object], kind: str) -> None:
    assert kinds(START._replace(update=5, rewards=ROSE)._replace(**change)) == [kind]
    assert kinds(START._replace(update=5)._replace(**change)) == []


def test_silence_is_an_alarm_whatever_the_reward() -> None:
    assert kinds(START._replace(update=5, silent=0.75)) == ["silence"]
    assert monitoring.alarms(START._replace(silent=0.8), START._replace(silent=0.75)) == []  # it was so at the start


def test_kept_is_what_the_judge_likes_best_within_the_limit() -> None:
    points = [
        START,
        START._replace(update=5, kl=2.0, harms=(0.3, 0.3, 0.3, 0.3)),
        START._replace(update=10, kl=9.0, harms=(0.1, 0.1, 0.1, 0.1)),
        START._replace(update=15, kl=4.0, harms=(0.4, 0.4, 0.4, 0.4)),
    ]
    assert monitoring.best(points, 5.0).update == 5
    assert monitoring.best(points, 10.0).update == 10
    assert monitoring.best(points, 1.0).update == 0
    worse = [START, START._replace(update=5, kl=2.0, harms=(0.9, 0.9, 0.9, 0.9))]
    assert monitoring.best(worse, 5.0).update == 0
    blind = [each._replace(harms=(None,) * 4) for each in points]
    assert monitoring.best(blind, 5.0).update == 15  # without a judge: the last within the limit


def test_who_falls_silent_where_it_is_hard_does_not_win() -> None:
    start = START._replace(harms=(0.9, *[0.5] * 19), silent=0.0)
    # The worst is not answered any more; on the others it is no better than the start.
    quiet = start._replace(update=5, kl=1.0, harms=(None, *[0.5] * 19), silent=0.05)
    assert monitoring.best([start, quiet], 5.0).update == 0
    # An empty answer counts as no change: a mean over what is left would favour this one over the next.
    partly = start._replace(update=5, kl=1.0, harms=(None, None, *[0.48] * 18), silent=0.1)
    better = start._replace(update=10, kl=1.0, harms=(0.88, *[0.48] * 19))
    assert monitoring.best([start, partly, better], 5.0).update == 10
    assert monitoring.best([start, partly], 5.0).update == 5
    more = start._replace(update=15, kl=1.0, harms=(None, None, None, *[0.1] * 17), silent=0.15)
    assert monitoring.best([start, better, more], 5.0).update == 10
    assert (
        monitoring.best([start._replace(silent=0.1), better, more], 5.0).update == 15
    )  # the start was silent as often
    blind = [each._replace(harms=(None,) * 20) for each in (start, better, more)]
    assert monitoring.best(blind, 5.0).update == 10


def test_repetition_and_change_by_hand() -> None:
    assert monitoring.repetition([1, 2, 3]) == 0.0
    assert monitoring.repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)  # 1234 2341 3412 4123 1234
    assert monitoring.repetition([7] * 9) == pytest.approx(5 / 6)
    found = monitoring.change([1.0, 2.0, None, 4.0], [2.0, 4.0, 3.0, 7.0])  # 1, 2, 3
    assert found is not None
    assert found.mean == pytest.approx(2.0)
    assert found.error == pytest.approx(1.0 / math.sqrt(3.0))
    assert found.up
    assert monitoring.change([1.0, None], [2.0, 3.0]) is None
    assert monitoring.mean([None, 2.0, 4.0]) == 3.0
    assert monitoring.mean([None]) is None
