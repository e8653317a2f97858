"""A server, step 1: it answers each request. But one that is no number ends it."""

import os

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.spec import Basic, BasicProperties

RABBITMQ_URL = os.environ.get("RABBITMQ_URL") or "amqp://guest:guest@localhost:5672/%2F"


def fib(n: int) -> int:
    """Return the n-th Fibonacci number."""
    current, following = 0, 1
    for _ in range(n):
        current, following = following, current + following
    return current


def on_request(
    channel: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes
) -> None:
    """Answer one request."""
    print(f" [.] fib({body.decode()})", flush=True)
    channel.basic_publish(
        exchange="",
        routing_key=properties.reply_to,
        body=str(fib(int(body))).encode(),
        properties=BasicProperties(correlation_id=properties.correlation_id),
    )
    channel.basic_ack(delivery_tag=method.delivery_tag)


channel = pika.BlockingConnection(pika.URLParameters(RABBITMQ_URL)).channel()
channel.queue_declare(queue="rpc_queue", durable=True)
channel.basic_qos(prefetch_count=1)
channel.basic_consume(queue="rpc_queue", on_message_callback=on_request)
print(" [*] Waiting for requests. To exit press CTRL+C", flush=True)
channel.start_consuming()
