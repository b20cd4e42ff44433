"""What of `make compare` needs neither Java nor a cluster: run by `cargo test` (tests/scripts.rs)."""

import contextlib
import io
import json
import os
import pathlib
import tempfile
import unittest
from html.parser import HTMLParser
from types import SimpleNamespace
from unittest import mock

import compare
import figures
import loads
import page
import peers
import perf
import report
import stock
import tools

PRODUCED = """\
Warmup first 100000 records. Steady state results will print after the complete test summary.
213457 records sent, 42691.4 records/sec (41.69 MB/sec), 311.2 ms avg latency, 861.0 ms max latency.
700000 records sent, 51234.1 records/sec (50.03 MB/sec), 402.17 ms avg latency, 1202.00 ms max latency, 380 ms 50th, 900 ms 95th, 1100 ms 99th, 1190 ms 99.9th.
600000 steady state records sent, 61728.4 records/sec (60.28 MB/sec), 350.01 ms avg latency, 900.00 ms max latency, 330 ms 50th, 610 ms 95th, 720 ms 99th, 860 ms 99.9th.
"""
CONSUMED = """\
time, threadId, data.consumed.in.MB, MB.sec, data.consumed.in.nMsg, nMsg.sec, rebalance.time.ms, fetch.time.ms, fetch.MB.sec, fetch.nMsg.sec
2026-11-26 21:25:34:384, 0, 0.0000, 0.0000, 0, 0.0000, 2128, 143, 0.0000, 0.0000
2026-11-26 21:25:35:000, 0, 0.9766, 0.4403, 1000, 440.3, 0, 143, 0.0068, 6.9930
2026-11-26 21:25:35:500, 0, 48.8281, 97.6, 51000, 100000.0, 0, 500, 95.7, 98000.0
"""
ANSWERED = """\
0\t131.8
Avg latency: 6.3929 ms
Percentiles: 50th = 4, 99th = 102, 99.9th = 140
"""
SETTLED = [[0.0, 1.0], [0.5, 2.0], [0.99, 8.0], [0.9999, 20.0], [1.0, 30.0]]


def one(turn, side, load, figures, **more):
    return {"round": turn, "side": side, "load": load, "scale": 1, "figures": figures, **more}


class SaidByTools(unittest.TestCase):
    def test_the_summary_without_warming_up_counts(self):
        found = tools.produced(PRODUCED)
        self.assertEqual((found["records"], found["rate"], found["p99"]), (600000, 61728.4, 720))

    def test_without_warming_up_the_only_summary_counts(self):
        found = tools.produced("\n".join(PRODUCED.split("\n")[:3]))
        self.assertEqual((found["records"], found["max"]), (700000, 1202))

    def test_a_consumer_counts_from_its_first_records(self):
        self.assertAlmostEqual(tools.consumed(CONSUMED), 100_000)

    def test_one_record_at_a_time(self):
        expected = {"average": 6.3929, "p50": 4, "p99": 102, "p99.9": 140}
        self.assertEqual(tools.answered(ANSWERED), expected)

    def test_a_tool_that_says_nothing_is_an_error(self):
        for parse in (tools.produced, tools.consumed, tools.answered):
            with self.assertRaises(AssertionError):
                parse("Exception in thread main")


class Judged(unittest.TestCase):
    def test_ratios_are_of_the_same_round(self):
        measured = [
            one(1, "kafka", "tail", {"MB/s": 100}),
            one(1, "trilog", "tail", {"MB/s": 200}),
            one(2, "kafka", "tail", {"MB/s": 10}),
            one(2, "trilog", "tail", {"MB/s": 30}),
            # Its other half is missing.
            one(3, "trilog", "tail", {"MB/s": 1000}),
        ]
        row = figures.judged(measured, ["kafka", "trilog"])[0]
        self.assertEqual(row["sides"]["trilog"], (200, 30, 1000))
        self.assertEqual(row["ratios"]["kafka"], {"ratio": (2.5, 2, 3), "target": ">= 1.5 x", "met": True})

    def test_where_less_is_better_a_ratio_has_to_be_small(self):
        for ours, met in [(25, True), (26, False)]:
            measured = [
                one(1, "kafka", "pace-half", {"p99 ms": 100}),
                one(1, "trilog", "pace-half", {"p99 ms": ours}),
            ]
            row = figures.judged(measured, ["kafka", "trilog"])[0]
            self.assertEqual(row["ratios"]["kafka"]["met"], met)
            self.assertEqual(row["ratios"]["kafka"]["target"], "<= 1/4")

    def test_what_the_bare_disk_allows_is_enough(self):
        for raw, met in [(800, True), (802, False), (None, False)]:
            measured = [
                one(1, "kafka", "produce-1k-10", {"MB/s": 90}),
                one(1, "trilog", "produce-1k-10", {"MB/s": 100}),
            ]
            row = figures.judged(measured, ["kafka", "trilog"], raw)[0]
            self.assertEqual(row["ratios"]["kafka"]["met"], met, raw)

    def test_rows_name_loads_that_are_there(self):
        names = {load.name for load in loads.LOADS}
        self.assertLessEqual({row.load for row in figures.ROWS}, names)
        self.assertLessEqual({load.stage for load in loads.LOADS}, set(loads.STAGES))

    def test_a_distribution_is_the_median_of_the_rounds_at_each_quantile(self):
        measured = [
            one(turn, "kafka", "pace-half", {}, quantiles={"delivered": [[0.5, value], [1.0, 9]]})
            for turn, value in enumerate([3, 1, 2], 1)
        ]
        found = figures.quantiles(measured, "kafka", "pace-half", "delivered")
        self.assertEqual(found, [(0.5, 2), (1.0, 9)])

    def test_numbers_keep_the_digits_that_matter(self):
        for value, expected in [(12345.6, "12,346"), (123.4, "123"), (12.34, "12.3"), (1.234, "1.23")]:
            self.assertEqual(figures.short(value), expected)


class Bounded(unittest.TestCase):
    """What perf.py makes of its rounds."""

    def rounds(self):
        speeds = [(170, 200, 400), (90, 300, 100), (50, 100, 100)]
        names = ("client on trilog", "native", "client on kafka")
        return [
            {name: {mode: {"speed": speed} for mode in ("produce", "consume")} for name, speed in zip(names, one)}
            for one in speeds
        ]

    def test_a_client_is_held_to_the_lower_bound_of_its_own_round(self):
        found = perf.shares(self.rounds(), "consume", "client")
        self.assertEqual(found["native"], [85, 30, 50])
        self.assertEqual(found["kafka"], [42.5, 90, 50])
        self.assertEqual(found["the lower of both"], [85, 90, 50])

    def test_the_median_of_the_rounds_is_judged(self):
        for least, said in [(85, "met"), (86, "MISSED")]:
            out = io.StringIO()
            with contextlib.redirect_stdout(out), mock.patch.object(perf, "TARGET", least):
                perf.report(self.rounds())
            self.assertEqual(out.getvalue().count(f"[>= {least} %: {said}]"), 2, out.getvalue())

    def test_readings_of_a_topic_count_by_how_long_they_took(self):
        told = iter([(1000, 1.0), (1000, 3.0)])
        with (
            mock.patch.object(stock, "READINGS", 2),
            mock.patch.object(stock, "reading", lambda *_: next(told)),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            self.assertEqual(stock.consume("somewhere", "topic", 1000, 1024, 1000), 500)


class Tags(HTMLParser):
    """Whether what is opened is closed."""

    EMPTY = {"meta", "rect", "line", "polyline", "!doctype"}

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.elsewhere = [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.elsewhere += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} closes something else"


def whole_run():
    """A figure of every row, a distribution of every chart, for each side."""
    measured = [{"round": 0, "side": "machine", "load": "bare", "figures": {"raw write": 1200.0}}]
    for row in figures.ROWS:
        for number, side in enumerate(["kafka", "kafka-flush", "trilog"], 1):
            shown = {"delivered": SETTLED, "acknowledged": SETTLED}
            measured.append(one(1, side, row.load, {row.figure: 10.0 * number}, quantiles=shown))
    return measured


class Reported(unittest.TestCase):
    def write(self, measured, skipped=()):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            sides = [*peers.OTHERS, peers.OURS]
            said = report.write(folder / "out", measured, list(skipped), sides, "abc <script>")
            found = {file.name: file.read_text() for file in (folder / "out").glob("*")}
        return said, found

    def test_a_run_is_one_table_one_document_one_page(self):
        said, found = self.write(whole_run(), ["kafka: no mvn"])
        self.assertEqual(sorted(found), ["index.html", "results.json", "results.md"])
        for row in figures.ROWS:
            self.assertIn(loads.titles()[row.load], said)
            self.assertIn(loads.titles()[row.load], found["results.md"])
        told = json.loads(found["results.json"])
        self.assertEqual(len(told["rows"]), len(figures.ROWS))
        self.assertEqual(told["skipped"], ["kafka: no mvn"])
        for text in found.values():
            self.assertIn("kafka: no mvn", text)

    def test_a_page_is_whole_and_needs_nothing_else(self):
        _, found = self.write(whole_run())
        tags = Tags()
        tags.feed(found["index.html"])
        self.assertEqual((tags.open, tags.elsewhere), ([], []))
        # Three charts of bars, five distributions.
        self.assertEqual(tags.seen.count("svg"), 8)
        self.assertNotIn("script", tags.seen)
        self.assertNotIn("nan", found["index.html"])

    def test_what_was_measured_while_others_worked_does_not_count_and_is_told(self):
        measured = whole_run()
        measured[1] |= {"others": 31.0, "figures": {"MB/s": 12345.0}}
        _, found = self.write(measured)
        self.assertIn("left out", found["results.md"])
        self.assertIn("produce-1k-10 (31 %)", found["results.md"])
        self.assertNotIn("12,345", found["results.md"])

    def test_one_side_alone_is_reported_too(self):
        _, found = self.write([line for line in whole_run() if line["side"] == "trilog"])
        self.assertIn("produce, 1 KiB, 10 partitions", found["results.md"])

    def test_nothing_measured_is_no_report(self):
        _, found = self.write([])
        self.assertEqual(found, {})

    def test_a_quantile_finds_its_place_among_nines(self):
        first, nine, two_nines = (page.place(quantile, 4) for quantile in (0, 0.9, 0.99))
        self.assertAlmostEqual(nine - first, two_nines - nine)


class Side:
    """One that can be started and stopped, and does nothing else."""

    dialect, title, topic = "kafka", "side", {}
    lived = []

    def __init__(self, stage):
        self.lived.append((self.name, stage, "starts"))
        self.bootstrap = self.name
        self._stage = stage

    def pids(self):
        return {1: os.getpid()}

    def stop(self):
        self.lived.append((self.name, self._stage, "stops"))


class Kafka(Side):
    name = "kafka"


class Trilog(Side):
    name = "trilog"


class Topics:
    """A generator of which only the topics are looked at."""

    def create(self, peer, topic, partitions, **config):
        pass

    def delete(self, peer, topic):
        pass


class Run(unittest.TestCase):
    def run_of(self, into, told, topics=None):
        """Two rounds with one load, which gives or raises what `told` says."""
        args = SimpleNamespace(into=into, hours=1, scale=1, loads="", stages=["load"])
        runner = compare.Runner(args, (None, topics or Topics()))
        load = loads.Load("produce-1k-10", "a load", "load", lambda ground: told(ground))
        before, loads.LOADS, Side.lived[:] = loads.LOADS, [load], []
        pause, loads.settled = loads.settled, lambda: None
        try:
            for turn in (1, 2):
                runner.round(turn, [Kafka, Trilog])
        finally:
            loads.LOADS, loads.settled = before, pause
        return runner

    def test_sides_take_turns_and_never_run_together(self):
        self.run_of(None, lambda ground: {"figures": {"records/s": 1}})
        order = ["kafka", "trilog", "trilog", "kafka"]
        expected = [(name, "load", what) for name in order for what in ("starts", "stops")]
        self.assertEqual(Side.lived, expected)

    def test_the_rate_follows_from_what_the_first_round_found(self):
        rates = []

        def told(ground):
            rates.append(ground.half)
            return {"figures": {"records/s": 1000 * (len(rates) + 1)}}

        self.run_of(None, told)
        self.assertEqual(rates[1:], [1000, 1000, 1000])

    def test_what_was_measured_is_kept_line_by_line(self):
        with tempfile.TemporaryDirectory() as folder:
            into = pathlib.Path(folder) / "kept"
            for _ in range(2):
                self.run_of(into, lambda ground: {"figures": {"records/s": 1}})
            self.assertEqual(len(compare.read(into)), 8)

    def test_a_load_that_fails_is_told_and_the_side_is_stopped(self):
        def told(ground):
            raise AssertionError("it broke")

        runner = self.run_of(None, told)
        self.assertEqual(len(runner.skipped), 4)
        self.assertIn("it broke", runner.skipped[0])
        self.assertEqual(len(Side.lived), 8)

    def test_clients_that_are_missing_are_named(self):
        def told(ground):
            compare.Absent("java is not installed").produce()

        runner = self.run_of(None, told)
        self.assertIn("java is not installed", runner.skipped[0])
        # Without a generator there is not even a topic.
        runner = self.run_of(None, told, compare.Absent("cc is not installed"))
        self.assertEqual(len(runner.skipped), 4)
        self.assertIn("cc is not installed", runner.skipped[0])
        self.assertEqual(len(Side.lived), 8)


if __name__ == "__main__":
    unittest.main()
