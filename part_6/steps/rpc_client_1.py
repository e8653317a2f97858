"""A client, step 1: one request, one answer. But it takes any answer for its own."""

import os
import sys

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.spec import Basic, BasicProperties

RABBITMQ_URL = os.environ.get("RABBITMQ_URL") or "amqp://guest:guest@localhost:5672/%2F"
n = sys.argv[1] if len(sys.argv) > 1 else "30"
answers: list[bytes] = []


def on_answer(
    channel: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes
) -> None:
    """Keep the answer."""
    answers.append(body)


with pika.BlockingConnection(pika.URLParameters(RABBITMQ_URL)) as connection:
    channel = connection.channel()
    callback_queue = channel.queue_declare(queue="", exclusive=True).method.queue
    channel.basic_consume(queue=callback_queue, on_message_callback=on_answer, auto_ack=True)
    print(f" [x] Requesting fib({n})", flush=True)
    channel.basic_publish(
        exchange="",
        routing_key="rpc_queue",
        body=n.encode(),
        properties=BasicProperties(reply_to=callback_queue),
    )
    while not answers:
        connection.process_data_events(time_limit=1)
    print(f" [.] fib({n}) = {int(answers[0])}", flush=True)
