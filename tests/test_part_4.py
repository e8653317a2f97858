"""Routing: the statements of Part IV, in the order in which the text makes them."""

import pytest
from pika.adapters.blocking_connection import BlockingChannel as Channel

from tests.conftest import Run
from tests.scripts import publish_keys

EMIT, RECEIVE = "part_4/emit_log_direct.py", "part_4/receive_logs_direct.py"


@pytest.mark.claim("III-direct-type", "IV-direct")
def test_a_message_goes_where_its_key_is_the_binding_key(run: Run, channel: Channel) -> None:
    q1 = run(RECEIVE, "orange").expect_ready()
    q2 = run(RECEIVE, "black", "green").expect_ready()
    keys = ("orange", "black", "green", "white", "orange.black", "", "orange", "green")
    publish_keys(channel, "direct_logs", *keys)
    q1.expect("'orange'", times=2)
    q2.expect("'green'", times=2)
    assert q1.messages == ["orange:'orange'"] * 2
    assert q2.messages == ["black:'black'", "green:'green'", "green:'green'"]


@pytest.mark.claim("IV-multiple", "IV-subset")
def test_each_receiver_gets_the_severities_that_it_asked_for(run: Run) -> None:
    errors = run(RECEIVE, "error").expect_ready()
    everything = run(RECEIVE, "info", "warning", "error").expect_ready()
    for severity in ("info", "warning", "error"):
        emitter = run(EMIT, severity, "Run.", "Run. Or it will explode.")
        assert emitter.wait() == 0
        assert emitter.messages == [f"Sent {severity}:'Run. Run. Or it will explode.'"]
    for arguments in (["error"], ["error", ""]):  # a message may be left out, or be empty
        assert run(EMIT, *arguments).wait() == 0
    all_errors = ["error:'Run. Run. Or it will explode.'", "error:'Hello World!'", "error:''"]
    others = [f"{severity}:'Run. Run. Or it will explode.'" for severity in ("info", "warning")]
    for receiver in (errors, everything):
        receiver.expect("error:''")
    assert errors.messages == all_errors
    assert everything.messages == [*others, *all_errors]
