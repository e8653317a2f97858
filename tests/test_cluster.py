"""Beyond one machine: the same scripts on three nodes, of which some are killed outright."""

import time
from collections import Counter
from functools import partial

import pytest

from bench import measure as bench
from bench.results import Sample
from testbed.broker import Broker
from testbed.cluster import Cluster
from testbed.programs import CLIENT, NEW_TASK, RPC_QUEUE, SERVER, WORKER, tasks_done
from testbed.programs import TASK_QUEUE as QUEUE
from testbed.terminal import Terminal
from testbed.waiting import wait_until
from tests.conftest import Run, Variant
from tests.scripts import fails_with_one_line

# new_task.py, with each of its arguments as a task of its own.
SEND_EACH = (
    'send(parameters, " ".join(arguments.words))',
    "[send(parameters, word) for word in arguments.words]",
)

# A node that starts again takes its time.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]


def declare(queue: str, node: Broker) -> None:
    """Declare the durable queue on the node, which makes it the queue's leader."""
    with node.channel() as channel:
        channel.queue_declare(queue=queue, durable=True)


def done(workers: list[Terminal]) -> set[str]:
    """Return the tasks that a worker says it received and then did."""
    return {task.strip("'") for worker in workers for task in tasks_done(worker.out)}


def complaining(services: list[Terminal]) -> list[Terminal]:
    """Return those that have said something on stderr."""
    return [service for service in services if service.error]


def send_all(run: Run, script: str, tasks: list[str]) -> None:
    """Send the tasks one after the other, those again that a sender did not report as sent."""
    deadline = time.monotonic() + 90
    while tasks:
        assert time.monotonic() < deadline, f"not sent: {tasks}"
        sender = run(script, *tasks)
        code = sender.wait(90)
        assert sender.messages == [f"Sent {task!r}" for task in tasks[: len(sender.messages)]]
        tasks = tasks[len(sender.messages) :]
        assert code == (1 if tasks else 0)
        assert len(sender.error) == code


@pytest.mark.claim("beyond-cluster-forms")
def test_three_nodes_that_start_at_once_form_one_cluster(cluster: Cluster) -> None:
    assert len(cluster.nodes) == 3
    names = {node.name for node in cluster.nodes}
    for node in cluster.nodes:
        told = node.management("nodes")
        assert {one["name"] for one in told if one["running"]} == names


@pytest.mark.claim("beyond-cluster-quorum")
def test_durable_queues_are_replicated_and_no_others(run: Run, cluster: Cluster) -> None:
    for script in (WORKER, SERVER, "part_1/receive.py", "part_3/receive_logs.py"):
        run(script).expect_ready()
    # Declared again, by programs that say nothing of the queue's type.
    assert run(NEW_TASK).wait() == 0
    assert run(CLIENT, "7").wait() == 0
    assert run("part_1/sender.py").wait() == 0

    names = sorted(node.name for node in cluster.nodes)
    queues = cluster.queues()
    for name in (QUEUE, RPC_QUEUE):
        assert queues[name]["type"] == "quorum"
        assert sorted(queues[name]["members"]) == names
        assert sorted(queues[name]["online"]) == names
    others = {name: queue for name, queue in queues.items() if name not in (QUEUE, RPC_QUEUE)}
    assert "hello" in others
    assert any(name.startswith("amq.gen-") for name in others)
    for queue in others.values():
        assert queue["type"] == "classic"
        assert "members" not in queue


@pytest.mark.claim("beyond-cluster-balanced")
def test_consumers_are_spread_over_the_nodes(run: Run, cluster: Cluster) -> None:
    for _ in cluster.nodes:
        run(WORKER).expect_ready()
    names = {node.name for node in cluster.nodes}
    wait_until(
        lambda: {one.get("node") for one in cluster.management("connections")} == names,
        "a worker on each node",
    )


@pytest.mark.claim("beyond-cluster-node-lost", "beyond-cluster-services")
@pytest.mark.parametrize("victim", [0, 1], ids=["leader", "follower"])
def test_a_node_is_killed_in_the_middle_of_two_hundred_tasks(
    run: Run, cluster: Cluster, variant: Variant, victim: int
) -> None:
    for queue in (QUEUE, RPC_QUEUE):
        declare(queue, cluster.nodes[0])
        assert cluster.node_of(queue) is cluster.nodes[0]
    cluster.settle()
    # One of each on each node, since the balancer takes the one with the fewest connections.
    workers = [run(WORKER).expect_ready() for _ in cluster.nodes]
    servers = [run(SERVER).expect_ready() for _ in cluster.nodes]
    tasks = [f"task {number}" for number in range(1, 201)]
    send_each = variant(NEW_TASK, SEND_EACH)
    sender = run(send_each, *tasks).expect("Sent 'task 60'", seconds=60)

    cluster.kill_nodes(cluster.nodes[victim])
    sender.wait(90)
    assert len(sender.messages) >= 60
    send_all(run, send_each, tasks[len(sender.messages) :])
    client = run(CLIENT, "--timeout", "30", "30")
    assert client.wait(40) == 0
    assert client.out[-1] == " [.] fib(30) = 832040"

    wait_until(lambda: done(workers) == set(tasks), "each task to be done", seconds=60)
    for services in (workers, servers):
        for service in wait_until(partial(complaining, services), "a lost connection"):
            service.expect("[!] Connection lost").expect("[*] Waiting", times=2, seconds=30)
    cluster.wait_for_acknowledgements(QUEUE)
    assert cluster.ready(QUEUE) == 0

    def online() -> set[str]:
        return set(cluster.queues()[QUEUE]["online"])

    wait_until(lambda: online() == {node.name for node in cluster.running}, "two replicas")
    cluster.start()
    names = {node.name for node in cluster.nodes}
    wait_until(lambda: online() == names, "the third to be back", seconds=60)


@pytest.mark.claim("beyond-cluster-majority-lost")
def test_without_two_of_three_nodes_nothing_is_confirmed_and_nothing_is_lost(
    run: Run, cluster: Cluster, variant: Variant
) -> None:
    *lost, left = cluster.nodes
    declare(QUEUE, left)
    declare(RPC_QUEUE, lost[0])
    cluster.settle()
    tasks = [f"task {number}" for number in range(1, 21)]
    send_each = variant(NEW_TASK, SEND_EACH)
    send_all(run, send_each, tasks)
    cluster.kill_nodes(*lost)
    impatient = ("max(30, 1 + (parameters.blocked_connection_timeout or 0))", "2")
    elsewhere = (f'QUEUE = "{QUEUE}"', f'QUEUE = "{RPC_QUEUE}"')
    for reason, script in (
        ("no confirm in time", variant(NEW_TASK, impatient)),
        # Where the leader is gone too, RabbitMQ may say at once that it cannot.
        ("", variant(NEW_TASK, impatient, elsewhere)),
    ):
        sender = run(script, "in vain", url=left.url)
        fails_with_one_line(sender, reason)
    worker = run(WORKER, url=left.url)

    cluster.start()
    send_all(run, send_each, ["later"])
    wait_until(
        lambda: {*tasks, "later"} <= done([worker]) <= {*tasks, "later", "in vain"},
        "each task to be done",
        seconds=60,
    )


@pytest.mark.claim("beyond-cluster-not-replicated")
def test_queues_that_are_not_replicated_go_with_their_node(run: Run, cluster: Cluster) -> None:
    lost, *_ = cluster.nodes
    scripts = {
        "part_3/receive_logs.py": ["part_3/emit_log.py", "Heard"],
        "part_4/receive_logs_direct.py": ["part_4/emit_log_direct.py", "info", "Heard"],
        "part_5/receive_logs_topic.py": ["part_5/emit_log_topic.py", "info", "Heard"],
    }
    receivers = [
        run(script, *arguments[1:-1], url=lost.url).expect_ready()
        for script, arguments in scripts.items()
    ]
    assert run("part_1/sender.py", url=lost.url).wait() == 0
    gone = set(cluster.queues())
    assert len(gone) == len(scripts) + 1
    cluster.kill_nodes(lost)

    for receiver in receivers:
        fails_with_one_line(receiver, " [!] StreamLostError")
    wait_until(lambda: not gone & set(cluster.queues()), "the queues to be gone")
    for script, sender in scripts.items():
        again = run(script, *sender[1:-1]).expect_ready()
        assert run(*sender).wait() == 0
        again.expect("Heard")
    # From RabbitMQ 4.2 on the others keep hello on record, because its node may only be cut off
    # from them. A program that declares it gets no answer until that node is back.
    hello = run("part_1/receive.py")
    if cluster.release < (4, 2):
        hello.expect_ready()
    cluster.start()
    hello.expect("[*] ", seconds=60)
    # And what waited in hello was in no other place.
    with cluster.channel() as channel:
        channel.basic_publish(exchange="", routing_key="hello", body=b"later")
    hello.expect("Received 'later'")
    assert hello.messages == ["Received 'later'"]


def test_the_benchmark_measures_queues_on_three_nodes(cluster: Cluster) -> None:
    told: list[Sample] = []
    size = bench.Size(scale=0.25, rounds=1, seconds=0)
    node, nodes = cluster.nodes[0], len(cluster.nodes)
    bench.measure(node, size, told.append, [bench.queue_types], nodes)
    assert Counter(sample.measure for sample in told) == {
        "queue_types": 3,
        "queue_types_in_flight": 3,
    }
    assert all(sample.value > 0 for sample in told)
