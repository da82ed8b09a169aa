"""When a flow is due."""

from __future__ import annotations

import pytest

from heliostat.definition import Retrain
from heliostat.promote.flows import Flow, State, due
from heliostat.units import Duration

DAILY = Retrain(every=Duration.parse("1d"))
FOLLOWS = Retrain(dataset="data/intents.csv")


def flow(state: State = "done", **changes: object) -> Flow:
    made = Flow(app="a", id="i", job="j", run="r", who="w", why="y", began_at=1000.0, dataset="one", state=state)
    return made.model_copy(update=changes)


@pytest.mark.parametrize(
    ("last", "retrain", "dataset", "now", "why"),
    [
        (None, DAILY, "", 0, "every 1d"),
        (flow(), DAILY, "", 1000 + 86_399, ""),
        (flow("refused"), DAILY, "", 1000 + 86_400, "every 1d"),
        (flow("judge", who="controller"), DAILY, "", 1001, "it was left unfinished"),
        (flow("judge"), DAILY, "", 10**9, ""),
        (None, FOLLOWS, "", 0, ""),
        (None, FOLLOWS, "one", 0, "a new version of data/intents.csv"),
        (flow(), FOLLOWS, "one", 10**9, ""),
        (flow(), FOLLOWS, "two", 1001, "a new version of data/intents.csv"),
    ],
)
def test_a_flow_is_due_by_the_clock_by_its_dataset_and_where_it_was_left(
    last: Flow | None, retrain: Retrain, dataset: str, now: float, why: str
) -> None:
    assert due(last, retrain, dataset=dataset, now=now) == why
