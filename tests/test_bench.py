"""`make bench` measures, and the README shows what its last full run did, and says no more."""

import re
from collections import Counter
from pathlib import Path

from bench import measure as bench
from bench.results import MEASURES, Results, Sample
from testbed.broker import Broker
from tests.test_readme import README
from tools import readme

ONCE = bench.Size(scale=0.05, rounds=1, seconds=0)
FULL_RUN = Results.read()


def test_a_round_of_some_measures(broker: Broker, tmp_path: Path) -> None:
    told: list[Sample] = []
    measures = (bench.new_task, bench.working, bench.dispatch)
    results = bench.measure(broker, ONCE, told.append, measures)
    assert Counter(sample.measure for sample in told) == {
        "new_task": 4,
        "working": 5,
        "dispatch": 2,
    }
    assert all(sample.value > 0 for sample in told)
    blind, fair = results.timelines.values()
    for tasks in (blind, fair):
        assert sorted(task.name for task in tasks) == ["heavy"] * 4 + ["light"] * 4
        assert all(0 < task.began < task.ended for task in tasks)
    # Blindly, one worker got all the heavy tasks.
    assert len({(task.worker, task.name) for task in blind}) == 2
    assert len({(task.worker, task.name) for task in fair}) > 2
    results.write(tmp_path / "results.json")
    assert Results.read(tmp_path / "results.json") == results


def test_a_table_has_medians_and_the_spread_of_the_ratios() -> None:
    results = Results({"RabbitMQ": "3.13.7"}, 4)
    for plain, ours in ((100, 150), (200, 100), (1000, 1200)):
        results.add(Sample("new_task", "plain", plain))
        results.add(Sample("new_task", "new_task.py, confirmed", ours))
    assert results.table("new_task").splitlines()[2:] == [
        "| plain | 200 | 1 |",
        "| new_task.py, confirmed | 150 | 1.20 (0.50 to 1.50) |",
    ]
    assert results.goals("new_task") == ["Goal for new_task.py, confirmed: 0.9, met."]
    assert results.conditions == "Measured on one machine: RabbitMQ 3.13.7, 4 cores."


def test_the_readme_shows_the_last_full_run() -> None:
    assert set(FULL_RUN.samples) == set(MEASURES)
    for variants in FULL_RUN.samples.values():
        assert min(map(len, variants.values())) >= bench.FULL.rounds
    blocks = re.findall(
        r"<!-- \[\[\[cog cog\.out\(bench\((.*?)\)\) \]\]\] -->\n(.*?)<!-- \[\[\[end",
        README,
        re.DOTALL,
    )
    shown = []
    for names, text in blocks:
        measures = re.findall(r'"(\w+)"', names)
        shown += measures
        assert text == readme.bench(*measures)
    assert sorted(shown) == sorted(MEASURES)


def test_what_the_readme_says_of_costs_holds_for_the_last_full_run() -> None:
    median = {
        measure: [spread.median for spread in FULL_RUN.values(measure).values()]
        for measure in FULL_RUN.samples
    }
    a_program, a_connection, only_a_message = median["connections"]
    assert 2 * a_program < a_connection < only_a_message / 2
    plain, confirmed = median["new_task"]
    assert confirmed > 0.8 * plain
    _, persistent, one_by_one, in_flight = median["sending"]
    assert one_by_one < persistent / 2
    assert in_flight > 3 * one_by_one
    plain, ours, *_, prefetch_100, auto_ack = median["working"]
    assert 0.8 * plain < ours
    assert plain < prefetch_100 < auto_ack
    for measure in ("workers", "servers"):
        ratios = FULL_RUN.ratios(measure)
        assert all(ratio.median > 0.8 * int(name.split()[0]) for name, ratio in ratios.items())
    blind, fair = median["dispatch"]
    assert fair < 0.8 * blind
    assert median["receivers"] == sorted(median["receivers"], reverse=True)
    # With a hundred times as many bindings.
    few, many = median["routing"]
    assert many > few / 10
    direct, *topic = median["topics"]
    assert min(topic) > 0.7 * direct
    for measure in ("rpc_client", "rpc_server"):
        plain, ours = median[measure]
        assert ours > 0.8 * plain
    one_call, in_flight = median["in_flight"]
    assert in_flight > one_call
