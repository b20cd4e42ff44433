// What franz-go sees of a cluster: records, groups, transactions, exactly once.
// Usage: main BOOTSTRAP PREFIX
package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

const count = 100

var seeds kgo.Opt

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func client(options ...kgo.Opt) *kgo.Client {
	made, err := kgo.NewClient(append(options, seeds)...)
	check(err)
	return made
}

// What a committed reader of a group asks for.
func reader(group, topic string) []kgo.Opt {
	return []kgo.Opt{
		kgo.ConsumerGroup(group),
		kgo.ConsumeTopics(topic),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
	}
}

func errorsOf(fetches kgo.Fetches) {
	for _, failed := range fetches.Errors() {
		check(failed.Err)
	}
}

func produce(ctx context.Context, topic string) {
	producer := client(kgo.AllowAutoTopicCreation(), kgo.DefaultProduceTopic(topic))
	defer producer.Close()
	for n := range count {
		check(producer.ProduceSync(ctx, kgo.StringRecord(fmt.Sprint("v", n))).FirstErr())
	}
}

func transact(ctx context.Context, topic, id string) {
	producer := client(kgo.TransactionalID(id), kgo.DefaultProduceTopic(topic))
	defer producer.Close()
	for _, end := range []kgo.TransactionEndTry{kgo.TryAbort, kgo.TryCommit} {
		check(producer.BeginTransaction())
		value := fmt.Sprint("committed ", end == kgo.TryCommit)
		check(producer.ProduceSync(ctx, kgo.StringRecord(value)).FirstErr())
		check(producer.EndTransaction(ctx, end))
	}
}

// Reads until it has seen so many records; how often each value came.
func consume(ctx context.Context, group, topic string, wanted int) map[string]int {
	consumer := client(reader(group, topic)...)
	defer consumer.Close()
	seen := map[string]int{}
	for total := 0; total < wanted; {
		fetches := consumer.PollFetches(ctx)
		errorsOf(fetches)
		fetches.EachRecord(func(record *kgo.Record) {
			seen[string(record.Value)]++
			total++
		})
	}
	check(consumer.CommitUncommittedOffsets(ctx))
	return seen
}

// Consumes, transforms and produces in transactions.
func transform(ctx context.Context, group, source, sink string, wanted int) {
	options := append(reader(group, source), seeds,
		kgo.TransactionalID(group), kgo.RequireStableFetchOffsets(), kgo.AllowAutoTopicCreation())
	session, err := kgo.NewGroupTransactSession(options...)
	check(err)
	defer session.Close()
	for total := 0; total < wanted; {
		fetches := session.PollFetches(ctx)
		errorsOf(fetches)
		check(session.Begin())
		taken := 0
		fetches.EachRecord(func(record *kgo.Record) {
			taken++
			copied := &kgo.Record{Topic: sink, Value: record.Value}
			session.Produce(ctx, copied, func(_ *kgo.Record, err error) { check(err) })
		})
		committed, err := session.End(ctx, kgo.TryCommit)
		check(err)
		if committed {
			total += taken
		}
	}
}

func expectEach(seen map[string]int) {
	if len(seen) != count+1 || seen["committed true"] != 1 {
		check(fmt.Errorf("not what was committed: %v", seen))
	}
	for value, times := range seen {
		if times != 1 {
			check(fmt.Errorf("%q came %d times", value, times))
		}
	}
}

func main() {
	seeds = kgo.SeedBrokers(strings.Split(os.Args[1], ",")...)
	topic := os.Args[2] + "-go"
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	produce(ctx, topic)
	transact(ctx, topic, topic+"-id")
	expectEach(consume(ctx, topic+"-group", topic, count+1))
	transform(ctx, topic+"-eos", topic, topic+"-out", count+1)
	expectEach(consume(ctx, topic+"-out-group", topic+"-out", count+1))
}
