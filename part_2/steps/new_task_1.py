"""A sender of tasks, step 1: a dot is a second of work. But RabbitMQ forgets it on a restart."""

import os
import sys

import pika

RABBITMQ_URL = os.environ.get("RABBITMQ_URL") or "amqp://guest:guest@localhost:5672/%2F"

message = " ".join(sys.argv[1:]) or "Hello World!"
with pika.BlockingConnection(pika.URLParameters(RABBITMQ_URL)) as connection:
    channel = connection.channel()
    channel.queue_declare(queue="hello")
    channel.basic_publish(
        exchange="",
        routing_key="hello",
        body=message.encode(),
    )
print(f" [x] Sent {message!r}", flush=True)
