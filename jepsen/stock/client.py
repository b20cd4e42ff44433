"""A stock Kafka client that does what the harness tells it, one thing after the other.

Lines of JSON come in on standard input, one answer to each goes out on standard output. It ends when
its standard input does. Values go as hex digits: what is in them is the harness's business.

  {"do": "send", "key": 0, "value": ".."}           -> {"offset": 7} | {"unknown": ".."}
  {"do": "assign", "places": {"0": 12}}             -> {}
  {"do": "poll", "wait": 0.05, "most": 400}         -> {"records": [[0, 12, ".."]], "places": {"0": 13},
                                                        "damaged": [[1, ".."]]}
"""

import json
import sys

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition


# What came was not what was written: no node may serve such a thing.
DAMAGED = (KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION)


class Client:
    def __init__(self, servers, topic, patience):
        self.servers, self.topic, self.patience = servers, topic, patience
        self.producer = self.consumer = None
        self.places = {}

    def send(self, key, value):
        if self.producer is None:
            self.producer = Producer({
                "bootstrap.servers": self.servers,
                "enable.idempotence": True,
                "linger.ms": 0,
                "message.timeout.ms": int(self.patience * 1000),
                "socket.timeout.ms": 3000,
                "reconnect.backoff.max.ms": 250,
                "retry.backoff.ms": 40,
            })
        told = []
        value = bytes.fromhex(value)
        report = lambda error, message: told.append((error, message))
        self.producer.produce(self.topic, value, partition=key, on_delivery=report)
        left = self.producer.flush(self.patience + 5)
        if left or not told:
            self.producer = None
            return {"unknown": "the producer says nothing"}
        error, message = told[0]
        if error is None:
            return {"offset": message.offset()}
        # What a stock producer has given up it may have sent before.
        self.producer = None
        return {"unknown": str(error)}

    def assign(self, places):
        if self.consumer is None:
            self.consumer = Consumer({
                "bootstrap.servers": self.servers,
                "group.id": "stock",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "check.crcs": True,
                "auto.offset.reset": "error",
                "socket.timeout.ms": 3000,
                "reconnect.backoff.max.ms": 250,
                "fetch.wait.max.ms": 50,
                "enable.partition.eof": True,
            })
        self.places = {int(key): place for key, place in places.items()}
        self.consumer.assign([TopicPartition(self.topic, *place) for place in self.places.items()])
        return {}

    def reach(self, key, place):
        self.places[key] = max(self.places.get(key, 0), place)

    def poll(self, wait, most):
        records, damaged = [], []
        for message in self.consumer.consume(most, wait):
            error = message.error()
            if error is not None:
                # Of what it does not show only the end is told. All else it gets over by itself,
                # or stands where it was.
                if error.code() == KafkaError._PARTITION_EOF:
                    self.reach(message.partition(), message.offset())
                elif error.code() in DAMAGED:
                    damaged.append([message.partition(), error.str()])
                continue
            value = (message.value() or b"").hex()
            records.append([message.partition(), message.offset(), value])
            self.reach(message.partition(), message.offset() + 1)
        return {"records": records, "places": self.places, "damaged": damaged}


def main(servers, topic, patience):
    client = Client(servers, topic, float(patience))
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = getattr(client, asked.pop("do"))(**asked)
        except (KafkaException, BufferError) as error:
            answer = {"unknown": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
