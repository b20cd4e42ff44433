# Trilog. `make run` shows it working, `make test` proves it; `make help` lists the rest.

CARGO ?= cargo
SEEDS ?= 200
RECORDS ?= 600000
# How long `make fuzz` stays with each target.
SECONDS ?= 60
# Where rustup puts cargo, should setup have to install it.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin
TRILOG = $(CARGO) run --quiet --release --locked -p trilog-server --bin trilog --

.DEFAULT_GOAL := help
.PHONY: help run dev test sim chaos chaos-mutants fuzz interop-kafka bench bench-kafka bench-steps compare fmt lint verify setup rocksdb

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' Makefile | awk -F ':.*## ' '{ printf "  make %-8s %s\n", $$1, $$2 }'

run: rocksdb ## Three nodes take real data, lose one, lose nothing, replay from anywhere
	$(CARGO) build --release --locked -p trilog-server --bin trilog
	$(TRILOG) demo --records $(RECORDS)

dev: rocksdb ## Three nodes to try things out on; Ctrl-C stops them
	$(CARGO) build --release --locked -p trilog-server --bin trilog
	$(TRILOG) dev

test: rocksdb ## Every test that needs no root and no network
	$(CARGO) test --workspace --locked

# How fast it goes is told at the end; with PROOF=docs/proof.tsv it is a line there for each test.
PROOF ?=
sim: rocksdb ## Disks, links and whole clusters under SEEDS=200 (or 200..400) different fates
	CARGO="$(CARGO)" scripts/sim.sh "$(SEEDS)" "$(PROOF)"

# One seed after the other, each with a report under target/chaos/SEED; without HOURS two of them.
# CAMPAIGN=power-loss,corruption,leader-kill,rolling-restart,mixes (or some of them) is COUNT=100 short
# ones of each on NODES=3 in MINUTES=240 at most, and a line of docs/proof.tsv for each; with DENSE=1 of
# several times as many operations. OLDER is a build of trilog for upgrades to begin with; PYTHON one
# that has confluent_kafka, for clients of librdkafka.
HOURS ?= 0
SEED ?=
CAMPAIGN ?=
COUNT ?= 100
MINUTES ?= 240
NODES ?= 3
OLDER ?=
DENSE ?=
chaos: rocksdb ## Real nodes mistreated while clients work, the history judged; HOURS=8, SEED=1
	$(CARGO) build --release --locked -p trilog-server -p trilog-jepsen --bins
	NODES="$(NODES)" OLDER="$(OLDER)" PYTHON="$(PYTHON)" DENSE="$(DENSE)" \
		$(if $(CAMPAIGN),scripts/campaign.sh "$(CAMPAIGN)" "$(COUNT)" "$(MINUTES)" "$(SEED)", \
		scripts/chaos.sh "$(HOURS)" "$(SEED)")

# RUNS=5 seeds of the harness with each bug, SEEDS=20 of its simulation; with BUGS only those.
BUGS ?=
chaos-mutants: rocksdb ## Bugs planted on purpose: which simulation and which run notices each
	CARGO="$(CARGO)" scripts/chaos-mutants.sh $(BUGS)

# Each target for SECONDS=60, or RUNS=1000000 times; PROOF=docs/proof.tsv has a line there for each.
fuzz: setup ## Everything that reads foreign bytes, SECONDS=60 on each
	@$(CARGO) fuzz --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-fuzz
	CARGO="$(CARGO)" SECONDS_EACH="$(SECONDS)" PROOF="$(PROOF)" \
		RUNS="$(if $(filter command environment,$(origin RUNS)),$(RUNS))" scripts/fuzz.sh

# PYTHON is one that has the packages of tests/interop/kafka/requirements.txt; what it has not is
# skipped, and said so.
PYTHON ?= python3
interop-kafka: rocksdb ## Real Kafka clients against three nodes: what ran, passed, was skipped
	$(CARGO) build --locked -p trilog-server --bin trilog
	$(PYTHON) tests/interop/kafka/run.py --trilog $${CARGO_TARGET_DIR:-target}/debug/trilog

# The Java tools need java and mvn, the groups PYTHON as above; 40 minutes and 8 GB of TMPDIR.
bench-kafka: rocksdb ## Stock Kafka clients beside the native one; 100 consumers that lose one
	$(CARGO) build --release --locked -p trilog-server --bin trilog
	$(PYTHON) tests/compare/perf.py --trilog $${CARGO_TARGET_DIR:-target}/release/trilog
	$(PYTHON) tests/interop/kafka/rebalance.py --trilog $${CARGO_TARGET_DIR:-target}/release/trilog

# Needs java, mvn and a C compiler for librdkafka; what is missing is skipped, and said so. Data goes
# to TMPDIR: 10 GB at most, removed afterwards. QUICK=1 has half of everything.
RUNS ?= 5
QUICK ?=
compare: rocksdb ## Beside Apache Kafka, RUNS=5 of each in turn: table and charts in docs/benchmarks
	$(CARGO) build --release --locked -p trilog-server --bin trilog
	$(PYTHON) tests/compare/compare.py --trilog $${CARGO_TARGET_DIR:-target}/release/trilog \
		--rounds $(RUNS) $(if $(QUICK),--quick)

bench: rocksdb ## Every figure, with the baseline it is a ratio of
	$(CARGO) build --release --locked -p trilog-server --bin trilog
	$(TRILOG) bench

bench-steps: rocksdb ## Single steps of producing and fetching, in nanoseconds
	$(CARGO) bench --locked -p trilog-tests --bench hot_paths

fmt: setup ## Format the code
	$(CARGO) fmt --all

lint: rocksdb ## What a review would say about form
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

verify: ## What runs for every change, all of it
	.ci/run

setup: ## Install what the build needs (as root), or say what is missing
	@scripts/setup.sh

rocksdb: setup # Compiled once per machine
	@scripts/rocksdb.sh
