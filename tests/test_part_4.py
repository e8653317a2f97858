"""Routing: the statements of Part IV, in the order in which the text makes them."""

import pytest
from pika.adapters.blocking_connection import BlockingChannel as Channel

from tests.conftest import Run

EMIT, RECEIVE = "part_4/emit_log_direct.py", "part_4/receive_logs_direct.py"


def publish(channel: Channel, *keys: str) -> None:
    """Send a message for each key, that key its body too, as emit_log_direct.py does."""
    channel.exchange_declare(exchange="direct_logs", exchange_type="direct")
    for key in keys:
        channel.basic_publish(exchange="direct_logs", routing_key=key, body=key.encode())


@pytest.mark.claim("IV-direct")
def test_a_message_goes_where_its_key_is_the_binding_key(run: Run, channel: Channel) -> None:
    q1 = run(RECEIVE, "orange").expect_ready()
    q2 = run(RECEIVE, "black", "green").expect_ready()
    publish(channel, "orange", "black", "green", "white", "orange.black", "", "orange", "green")
    q1.expect("'orange'", times=2)
    q2.expect("'green'", times=2)
    assert q1.messages == ["orange:'orange'"] * 2
    assert q2.messages == ["black:'black'", "green:'green'", "green:'green'"]


@pytest.mark.claim("IV-multiple")
def test_many_queues_may_be_bound_with_the_same_key(run: Run, channel: Channel) -> None:
    receivers = [run(RECEIVE, "black").expect_ready() for _ in range(2)]
    publish(channel, "black", "green", "black")
    for receiver in receivers:
        receiver.expect("'black'", times=2)
        assert receiver.messages == ["black:'black'"] * 2


@pytest.mark.claim("IV-subset")
def test_a_receiver_gets_the_severities_that_it_asked_for(run: Run) -> None:
    errors = run(RECEIVE, "error").expect_ready()
    everything = run(RECEIVE, "info", "warning", "error").expect_ready()
    for severity in ("info", "warning", "error"):
        emitter = run(EMIT, severity, "Run.", "Run. Or it will explode.")
        assert emitter.wait() == 0
        assert emitter.messages == [f"Sent {severity}:'Run. Run. Or it will explode.'"]
    errors.expect("error:")
    everything.expect("error:")
    assert errors.messages == ["error:'Run. Run. Or it will explode.'"]
    assert everything.messages == [
        f"{severity}:'Run. Run. Or it will explode.'" for severity in ("info", "warning", "error")
    ]


def test_no_argument_of_the_emitter_is_dropped(run: Run) -> None:
    receiver = run(RECEIVE, "info", "error").expect_ready()
    for arguments in (["error"], ["error", ""], ["info", "two", "words"]):
        assert run(EMIT, *arguments).wait() == 0
    receiver.expect("[x]", times=3)
    assert receiver.messages == ["error:'Hello World!'", "error:''", "info:'two words'"]
