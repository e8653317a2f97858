"""`make bench` measures, and the pages show what its last full run did, and say no more."""

import re
from collections import Counter
from pathlib import Path

import pytest

from bench import measure as bench
from bench.results import MEASURES, Results, Sample
from testbed.broker import Broker
from tools import readme
from tools.pictures import carried

ONCE = bench.Size(scale=0.05, rounds=1, seconds=0)
FULL_RUN = Results.read()
PAGE = bench.PAGE.read_text(encoding="utf-8")


def test_a_round_of_some_measures(broker: Broker, tmp_path: Path) -> None:
    told: list[Sample] = []
    measures = (bench.tasks_at_rest, bench.fanout)
    results = bench.measure(broker, ONCE, told.append, measures)
    counts = {"latency": 2, "latency_99": 2, "fanout": 3}
    assert Counter(sample.measure for sample in told) == counts
    assert all(sample.value > 0 for sample in told)
    assert list(results.versions) == ["RabbitMQ", "Erlang", "Python", "pika"]
    assert re.fullmatch(r"[\d.]+", results.versions["Erlang"])
    results.write(tmp_path / "results.json")
    assert Results.read(tmp_path / "results.json") == results


def test_what_goes_over_the_wire_comes_to_the_queue(broker: Broker) -> None:
    with broker.channel() as channel:
        channel.queue_declare(queue="task_queue", durable=True)
    bench.over_the_wire(broker, *[("publish", "300", "", "task_queue", "2")] * 2)
    broker.wait_for_ready("task_queue", 600)
    with broker.channel() as channel:
        _, properties, body = channel.basic_get(queue="task_queue", auto_ack=True)
    assert properties
    assert properties.delivery_mode == 2
    assert body == bytes(100)


@pytest.fixture
def results() -> Results:
    results = Results({"RabbitMQ": "3.13.7", "Erlang": "26.2.5"}, 4)
    for plain, ours in ((100, 150), (200, 100), (1000, 1200)):
        results.add(Sample("working", "worker_4.py, plain", plain))
        results.add(Sample("working", "worker.py", ours))
    results.add(Sample("latency", "a confirm", 0.51))
    results.add(Sample("latency_99", "a confirm", 4.2))
    return results


def test_a_table_has_medians_and_the_spread_of_the_ratios(results: Results) -> None:
    assert results.table("working").splitlines()[2:] == [
        "| worker_4.py, plain | 200 | 1 |",
        "| worker.py | 150 | 1.20 (0.50 to 1.50) |",
    ]
    assert results.table("latency").splitlines()[2:] == ["| a confirm | 0.51 | 4.20 |"]
    assert results.conditions == "RabbitMQ 3.13.7, Erlang 26.2.5, 4 cores"


def test_a_goal_is_met_or_missed(results: Results) -> None:
    assert [line.split(": ")[-1] for line in results.goals("working")] == ["1.20, met."]
    for worker, least in (("worker_4.py", 20), ("worker.py", 22)):
        results.add(Sample("memory", worker, least))
    assert [line.split(": ")[-1] for line in results.goals("memory")] == ["1.10, missed."]


def test_a_figure_in_a_sentence_is_short(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Results, "read", lambda: results)
    assert readme.figure("working", "worker.py") == "1.20"
    assert readme.figure("working", "worker_4.py, plain", of="worker.py") == "0.83"
    assert readme.share("working", "worker.py") == "120 %"
    assert readme.share("working", "worker.py", by=100) == "1.20 %"
    assert readme.rate("working", "worker.py") == "150 tasks a second"
    results.add(Sample("memory", "worker_4.py", 24.8))
    results.add(Sample("memory", "worker.py", 26.04))
    assert readme.figure("memory", "worker.py") == "1.05"
    assert readme.rate("memory", "worker.py") == "26 megabytes"
    assert readme.rate("latency_99", "a confirm") == "4.2 ms"
    assert readme.measured_on() == "RabbitMQ 3.13.7, Erlang 26.2.5, 4 cores."


@pytest.mark.parametrize("page", bench.PAGES, ids=lambda page: page.parent.name)
def test_a_page_shows_the_last_full_run(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert readme.measured_calls(text)
    assert readme.measured_anew(text) == text, "make bench RESULTS=bench/results.json"


def test_the_page_shows_all_that_a_full_run_measures() -> None:
    assert set(FULL_RUN.samples) == set(MEASURES)
    for variants in FULL_RUN.samples.values():
        assert min(map(len, variants.values())) >= bench.FULL.rounds
    named = {name for call in readme.measured_calls(PAGE) for name in re.findall(r'"(\w+)"', call)}
    beside = {what.beside for what in MEASURES.values()} - {""}
    assert set(MEASURES) - beside <= named


def test_the_pictures_are_of_the_last_full_run() -> None:
    pictures = sorted(bench.PAGE.parent.glob("*.png"))
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+)\)\n\n\*.+\*\n", PAGE)  # with a caption
    assert sorted(shown) == [picture.name for picture in pictures]
    old = [picture.name for picture in pictures if carried(picture, "digest") != FULL_RUN.digest]
    assert old == [], "make bench RESULTS=bench/results.json draws them anew"


def test_what_the_page_says_in_words_holds_for_the_last_full_run() -> None:
    def of(measure: str, variant: str, other: str = "") -> float:
        return FULL_RUN.ratio(measure, variant, other).median

    def rate(measure: str, variant: str) -> float:
        return FULL_RUN.value(measure, variant).median

    # What is said to be the limit of pika, and what is said to be that of RabbitMQ.
    pika = rate("sending", "not confirmed")
    assert rate("persistence", "persistent messages") > pika
    for variant in list(FULL_RUN.samples["routing"])[:-1]:
        assert rate("routing", variant) > 2 * pika
    assert of("connections", "a connection a message") > 2
    assert of("connections", "one channel for all", "a connection a message") > 2
    assert of("sending", "confirmed one by one") < 0.5
    assert of("sending", "confirmed, 100 in flight", "confirmed one by one") > 2
    assert of("persistence", "persistent messages") < 0.9
    assert of("latency", "a confirm, message of 1 MB", "a confirm, message of 100 bytes") > 2
    assert of("working", "worker.py", "pika's recipe, a thread a task") > 1
    assert of("prefetch", "worker_4.py, prefetch count 10") > 1.1
    for number in (2, 4, 8):
        assert of("workers", f"{number} workers") > 0.7 * number
    assert of("fanout", "8 receivers") < 8
    for exchange in ("direct", "topic"):
        assert of("routing", f"{exchange}, 1,000 bindings", f"{exchange}, 10 bindings") > 0.4
    assert of("routing", "headers, 1,000 bindings", "headers, 10 bindings") < 0.2
    assert of("rpc_client", "FibonacciRpcClient") > 0.8
    assert of("rpc_server", "rpc_server.py") > 0.7
    assert of("in_flight", "500 in flight") > 1.1
    assert of("queue_types", "quorum queue, three nodes") < 0.9
