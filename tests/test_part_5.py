"""Topics: the statements of Part V, in the order in which the text makes them."""

import pytest
from pika.adapters.blocking_connection import BlockingChannel as Channel

from testbed.terminal import Terminal
from tests.conftest import Run
from tests.scripts import fails_with_one_line, publish_keys

EMIT, RECEIVE = "part_5/emit_log_topic.py", "part_5/receive_logs_topic.py"


def keys_until(receiver: Terminal, last: str) -> list[str]:
    """Return the routing keys of what the receiver got before the message with the last one."""
    receiver.expect(f"{last}:'{last}'")
    keys = [message.partition(":")[0] for message in receiver.messages]
    assert receiver.messages == [f"{key}:{key!r}" for key in keys]
    assert keys.pop() == last
    return keys


@pytest.mark.claim("III-topic-type", "V-star", "V-hash", "V-like-fanout", "V-like-direct")
def test_a_queue_gets_the_keys_that_its_pattern_matches(run: Run, channel: Channel) -> None:
    keys = ["kern", "kern.critical", "kern.info", "kern.a.b", "kern.a.b.c", "kernel", "cron.kern"]
    keys += ["quick.orange", "quick", "quick.orange.fox", "slow.orange", "cron.critical"]
    keys += ["one", "", "a.b.c.d.e.f", "..", "*", "#"]
    taken = {
        "kern.*": ["kern.critical", "kern.info"],
        "kern.#": ["kern", "kern.critical", "kern.info", "kern.a.b", "kern.a.b.c"],
        "#": keys,  # like a fanout exchange
        "quick.orange": ["quick.orange"],  # like a direct one
    }
    receivers = {pattern: run(RECEIVE, pattern, "the.end").expect_ready() for pattern in taken}
    publish_keys(channel, "topic_logs", *keys, "the.end")
    assert {p: keys_until(receiver, "the.end") for p, receiver in receivers.items()} == taken


@pytest.mark.claim("V-animals")
def test_the_animals_go_where_the_table_says(run: Run, channel: Channel) -> None:
    q1 = run(RECEIVE, "*.orange.*").expect_ready()
    q2 = run(RECEIVE, "*.*.rabbit", "lazy.#").expect_ready()
    table = {
        "quick.orange.rabbit": (1, 1),
        "lazy.orange.elephant": (1, 1),
        "quick.orange.fox": (1, 0),
        "lazy.brown.fox": (0, 1),
        "lazy.pink.rabbit": (0, 1),  # once, though two bindings match
        "quick.brown.fox": (0, 0),
        "orange": (0, 0),
        "quick.orange.new.rabbit": (0, 0),
        "lazy.orange.new.rabbit": (0, 1),
    }
    publish_keys(channel, "topic_logs", *table, "lazy.orange.end")
    got = [keys_until(receiver, "lazy.orange.end") for receiver in (q1, q2)]
    assert {key: tuple(keys.count(key) for keys in got) for key in table} == table


def test_by_source_and_severity_at_once(run: Run) -> None:
    receiver = run(RECEIVE, "kern.*", "*.critical").expect_ready()
    for key in ("cron.warning", "kern.critical", "cron.critical"):
        emitter = run(EMIT, key, "A message of", key)
        assert emitter.wait() == 0
        assert emitter.messages == [f"Sent {key}:'A message of {key}'"]
    receiver.expect("cron.critical")
    assert receiver.messages == [
        f"{key}:'A message of {key}'" for key in ("kern.critical", "cron.critical")
    ]


@pytest.mark.claim("V-limit")
def test_a_routing_key_has_255_bytes_at_most(run: Run) -> None:
    for emit, receive, longest in (
        (EMIT, RECEIVE, "x" * 255),
        ("part_4/emit_log_direct.py", "part_4/receive_logs_direct.py", "é" * 127 + "x"),
    ):
        receiver = run(receive, longest).expect_ready()
        assert run(emit, longest, "passes").wait() == 0
        receiver.expect("'passes'")
        for script in (emit, receive):
            refused = run(script, longest + "x")
            fails_with_one_line(refused, "ShortStringTooLong", "255 bytes")
            assert refused.out == []
