"""Send persistent tasks to "task_queue" with many of them waiting for a confirm, until killed.

python bench/peers/pipelined_producer.py IN_FLIGHT

pika's BlockingConnection waits for each confirm, so this takes its connection with callbacks.
"""

import os
import sys
from typing import Any

import pika
from pika.channel import Channel
from pika.connection import Connection
from pika.frame import Method

IN_FLIGHT = int(sys.argv[1])
unconfirmed: set[int] = set()
sent = 0


def send(channel: Channel) -> None:
    """Send until as many messages wait for a confirm as may."""
    global sent
    while len(unconfirmed) < IN_FLIGHT:
        channel.basic_publish(
            exchange="",
            routing_key="task_queue",
            body=b"task",
            properties=pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent),
        )
        sent += 1
        unconfirmed.add(sent)


def on_channel(channel: Channel) -> None:
    """Ask for confirms, and begin."""

    def on_confirm(frame: Method[Any]) -> None:
        tag = frame.method.delivery_tag
        confirmed = {earlier for earlier in unconfirmed if earlier <= tag}
        unconfirmed.difference_update(confirmed if frame.method.multiple else {tag})
        send(channel)

    def on_confirming(_: Method[Any]) -> None:
        print(" [*] Sending", flush=True)
        send(channel)

    channel.confirm_delivery(on_confirm, callback=on_confirming)


def on_open(connection: Connection) -> None:
    """Open a channel."""
    connection.channel(on_open_callback=on_channel)


parameters = pika.URLParameters(os.environ["RABBITMQ_URL"])
pika.SelectConnection(parameters, on_open_callback=on_open).ioloop.start()
