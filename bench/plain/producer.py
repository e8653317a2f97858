"""Send messages to "task_queue" from one open channel, one after the other, until killed.

python bench/plain/producer.py [persistent] [confirmed]
"""

import os
import sys

import pika

mode = pika.DeliveryMode.Persistent if "persistent" in sys.argv else pika.DeliveryMode.Transient
with pika.BlockingConnection(pika.URLParameters(os.environ["RABBITMQ_URL"])) as connection:
    channel = connection.channel()
    if "confirmed" in sys.argv:
        channel.confirm_delivery()
    print(" [*] Sending", flush=True)
    while True:
        channel.basic_publish(
            exchange="",
            routing_key="task_queue",
            body=b"task",
            properties=pika.BasicProperties(delivery_mode=mode),
        )
