"""Writes and reads a topic through the native API, with nothing but gRPC. See docs/native-api.md."""

import sys

import grpc
from trilog.v1 import (
    fetch_pb2,
    fetch_pb2_grpc,
    produce_pb2,
    produce_pb2_grpc,
    record_pb2,
    topics_pb2,
    topics_pb2_grpc,
)

address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7400"
channel = grpc.insecure_channel(address)
topics = topics_pb2_grpc.TopicsStub(channel)
producer = produce_pb2_grpc.ProducerStub(channel)

created = topics.Create(
    topics_pb2.CreateTopicRequest(name="first", partitions=1, if_not_exists=True)
)
print("topic", created.topic.name, "partitions", len(created.topic.partitions))

# Any node takes these. Each is committed, on disk on a majority, when its answer comes.
for number in range(3):
    done = producer.Publish(
        produce_pb2.PublishRequest(
            topic="first", key=b"python", value=f"record {number}".encode()
        )
    )
    print("published", done.partition, done.offset)

# What is read comes from the partition's leader.
described = topics.Describe(topics_pb2.DescribeTopicsRequest(names=["first"]))
partition = described.topics[0].topic.partitions[0]
leader = next(node.address for node in described.nodes if node.node == partition.leader)
print("leader", partition.leader)

reader = fetch_pb2_grpc.FetchStub(grpc.insecure_channel(leader))
request = fetch_pb2.FetchRequest(
    topic="first",
    partition=0,
    start=record_pb2.Start(earliest=record_pb2.Unit()),
    plain_records=True,
)
for response in reader.Fetch(request):
    for record in response.records:
        print("read", record.offset, record.key.decode(), record.value.decode())

# An error says what is wrong, and what to do about it.
try:
    producer.Publish(produce_pb2.PublishRequest(topic="no-such", value=b"x"))
except grpc.RpcError as error:
    print("refused", error.code().name, error.details())
