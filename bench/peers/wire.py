"""Producers and receivers so fast that what is measured is RabbitMQ, and neither pika nor Python.

python bench/peers/wire.py publish MESSAGES EXCHANGE ROUTING_KEY DELIVERY_MODE
python bench/peers/wire.py receive MESSAGES EXCHANGE

pika connects. Then a producer writes the same bytes again and again, in which pika has encoded many
messages once; and a receiver, whose queue is bound to the exchange, counts bytes without decoding
them. Each begins when it gets a line on its standard input, and prints its messages a second.
"""

import os
import socket
import sys
import time

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.frame import Body, Header
from pika.frame import Method as MethodFrame
from pika.spec import Basic, BasicProperties

CONSUMER = "receiver"
BODY = bytes(100)
A_WRITE = 100  # messages


def marshalled(channel: BlockingChannel, method: Basic.Publish | Basic.Deliver, mode: int) -> bytes:
    """Return a message as it goes over the wire."""
    # An exchange of type headers looks at this. It takes a few bytes of each message for all.
    properties = BasicProperties(delivery_mode=mode, headers={"service": "none"})
    number = channel.channel_number
    frames = (
        MethodFrame(number, method),
        Header(number, len(BODY), properties),
        Body(number, BODY),
    )
    return b"".join(frame.marshal() for frame in frames)


def socket_of(connection: pika.BlockingConnection) -> socket.socket:
    """Return the socket under a connection, which pika must not use from here on."""
    plain: socket.socket = connection._impl._transport._sock  # type: ignore[union-attr]
    plain.settimeout(None)
    return plain


def publish(connection: pika.BlockingConnection, messages: int, *where: str) -> float:
    """Return how many messages a second RabbitMQ takes and hands on to queues."""
    exchange, key, mode = where
    channel = connection.channel()
    message = marshalled(channel, Basic.Publish(exchange=exchange, routing_key=key), int(mode))
    many = A_WRITE * message
    plain = socket_of(connection)
    began = begin()
    for _ in range(0, messages, A_WRITE):
        plain.sendall(many)
    plain.settimeout(0)  # as pika has it
    channel.basic_qos(prefetch_count=0)  # whose answer comes once all before it is dealt with
    return messages / (time.perf_counter() - began)


def receive(connection: pika.BlockingConnection, messages: int, exchange: str) -> float:
    """Return how many messages a second come to a queue that is bound to the exchange."""
    channel = connection.channel()
    queue = channel.queue_declare(queue="", exclusive=True).method.queue
    channel.queue_bind(queue=queue, exchange=exchange)
    channel.basic_consume(
        queue=queue, on_message_callback=print, auto_ack=True, consumer_tag=CONSUMER
    )
    delivered = Basic.Deliver(consumer_tag=CONSUMER, delivery_tag=1, exchange=exchange)
    delivered.routing_key = ""
    left = messages * len(marshalled(channel, delivered, pika.DeliveryMode.Transient.value))
    plain = socket_of(connection)
    began = begin()
    while left > 0:
        left -= len(plain.recv(1 << 20))
    return messages / (time.perf_counter() - began)


def begin() -> float:
    """Say that all is ready, wait for the others, and return when it begins."""
    print("ready", flush=True)
    sys.stdin.readline()
    return time.perf_counter()


what, number, *where = sys.argv[1:]
connection = pika.BlockingConnection(pika.URLParameters(os.environ["RABBITMQ_URL"]))
print((publish if what == "publish" else receive)(connection, int(number), *where), flush=True)
os._exit(0)  # since pika could make nothing of what has come meanwhile
