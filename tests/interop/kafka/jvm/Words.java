// Words counted by Kafka Streams, exactly once, whoever dies meanwhile.
// Usage: Words feed BOOTSTRAP TOPIC FIRST END        writes lines with these numbers
//        Words count BOOTSTRAP ID SOURCE SINK DIR    counts until it is stopped
//        Words check BOOTSTRAP SINK LINES            reads the counts, and says whether they are right

import java.time.Duration;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.TreeMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Future;
import java.util.ArrayList;
import java.util.stream.Collectors;
import java.util.stream.IntStream;

import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.LongDeserializer;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;

public class Words {
    static final Duration PATIENCE = Duration.ofSeconds(150);
    static final Duration NOTHING_MORE = Duration.ofSeconds(3);

    public static void main(String[] args) throws Exception {
        switch (args[0]) {
            case "feed" -> feed(args[1], args[2], Integer.parseInt(args[3]), Integer.parseInt(args[4]));
            case "count" -> count(args[1], args[2], args[3], args[4], args[5]);
            case "check" -> check(args[1], args[2], Integer.parseInt(args[3]));
            default -> throw new IllegalArgumentException(args[0]);
        }
    }

    static List<String> words(int line) {
        return List.of("a" + line % 3, "b" + line % 7, "c" + line % 11, "all");
    }

    static Properties properties(String bootstrap, Map<String, String> more) {
        Properties properties = new Properties();
        properties.put("bootstrap.servers", bootstrap);
        properties.putAll(more);
        return properties;
    }

    static void feed(String bootstrap, String topic, int first, int end) throws Exception {
        Properties config = properties(bootstrap, Map.of("acks", "all"));
        var strings = new StringSerializer();
        try (var producer = new KafkaProducer<>(config, strings, strings)) {
            List<Future<?>> sent = new ArrayList<>();
            for (int n = first; n < end; n++) {
                String line = String.join(" ", words(n));
                sent.add(producer.send(new ProducerRecord<>(topic, "k" + n, line)));
                // So that there is a middle in which somebody can die.
                Thread.sleep(2);
            }
            for (Future<?> one : sent) {
                one.get();
            }
        }
    }

    static void count(String bootstrap, String id, String source, String sink, String dir)
            throws Exception {
        StreamsBuilder builder = new StreamsBuilder();
        builder.<String, String>stream(source)
            .flatMapValues(line -> Arrays.asList(line.split(" ")))
            .groupBy((key, word) -> word)
            .count(Materialized.as("counts"))
            .toStream()
            .to(sink, Produced.valueSerde(Serdes.Long()));
        String strings = Serdes.StringSerde.class.getName();
        Properties config = properties(bootstrap, Map.of(
            "application.id", id,
            "processing.guarantee", "exactly_once_v2",
            "default.key.serde", strings,
            "default.value.serde", strings,
            "num.stream.threads", "2",
            "commit.interval.ms", "100",
            // Every count is told, none is left out for the next.
            "statestore.cache.max.bytes", "0",
            "state.dir", dir));
        config.put("consumer.auto.offset.reset", "earliest");
        KafkaStreams streams = new KafkaStreams(builder.build(), config);
        CountDownLatch failed = new CountDownLatch(1);
        streams.setUncaughtExceptionHandler(error -> {
            error.printStackTrace();
            failed.countDown();
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        streams.setStateListener((now, before) -> System.err.println(before + " -> " + now));
        Runtime.getRuntime().addShutdownHook(new Thread(() -> streams.close(Duration.ofSeconds(30))));
        streams.start();
        failed.await();
        System.exit(1);
    }

    /** Each word has been counted 1, 2, 3 and so on to its last, each once and in this order. */
    static void check(String bootstrap, String sink, int lines) {
        Map<String, Long> wanted = new TreeMap<>();
        IntStream.range(0, lines)
            .forEach(line -> words(line).forEach(word -> wanted.merge(word, 1L, Long::sum)));
        Map<String, Long> seen = new TreeMap<>();
        Properties config = properties(bootstrap, Map.of("isolation.level", "read_committed"));
        try (var consumer = new KafkaConsumer<>(config, new StringDeserializer(), new LongDeserializer())) {
            consumer.assign(consumer.partitionsFor(sink).stream()
                .map(one -> new TopicPartition(sink, one.partition()))
                .collect(Collectors.toList()));
            consumer.seekToBeginning(consumer.assignment());
            long deadline = System.nanoTime() + PATIENCE.toNanos();
            while (!seen.equals(wanted)) {
                if (System.nanoTime() > deadline) {
                    fail("not in time: " + seen + " is not " + wanted);
                }
                consumer.poll(Duration.ofMillis(200)).forEach(record -> tally(seen, record));
            }
            long end = System.nanoTime() + NOTHING_MORE.toNanos();
            while (System.nanoTime() < end) {
                consumer.poll(Duration.ofMillis(200)).forEach(record -> tally(seen, record));
            }
            if (!seen.equals(wanted)) {
                fail("too much: " + seen + " is not " + wanted);
            }
        }
        System.out.println(wanted.size() + " words, each count once");
    }

    static void tally(Map<String, Long> seen, ConsumerRecord<String, Long> record) {
        long before = seen.getOrDefault(record.key(), 0L);
        if (record.value() != before + 1) {
            fail(record.key() + " is counted " + record.value() + " after " + before);
        }
        seen.put(record.key(), record.value());
    }

    static void fail(String what) {
        System.err.println(what);
        System.exit(1);
    }
}
