"""The plainest RPC client."""

import uuid

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.spec import Basic, BasicProperties


class PlainRpcClient:
    """The plainest RPC client: one call at a time, no error, no time limit."""

    def __init__(self, url: str) -> None:
        self.connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel = self.connection.channel()
        self.queue = self.channel.queue_declare(queue="", exclusive=True).method.queue
        self.channel.basic_consume(
            queue=self.queue, on_message_callback=self.on_answer, auto_ack=True
        )
        self.correlation_id = ""
        self.answer: bytes | None = None

    def on_answer(
        self,
        _: BlockingChannel,
        method: Basic.Deliver,
        properties: BasicProperties,
        body: bytes,
    ) -> None:
        """Take the answer to the call under way."""
        if properties.correlation_id == self.correlation_id:
            self.answer = body

    def call(self, n: int) -> int:
        """Return the n-th Fibonacci number."""
        self.answer = None
        self.correlation_id = str(uuid.uuid4())
        self.channel.basic_publish(
            exchange="",
            routing_key="rpc_queue",
            properties=BasicProperties(reply_to=self.queue, correlation_id=self.correlation_id),
            body=str(n).encode(),
        )
        while self.answer is None:
            self.connection.process_data_events(time_limit=None)
        return int(self.answer)
