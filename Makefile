# Trilog. `make run` shows it working, `make test` proves it; `make help` lists the rest.

CARGO ?= cargo
SEEDS ?= 200
RECORDS ?= 600000
# Where rustup puts cargo, should setup have to install it.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin
TRILOG = $(CARGO) run --quiet --release --locked -p trilog-server --bin trilog --

.DEFAULT_GOAL := help
.PHONY: help run dev test sim bench fmt lint verify setup rocksdb

help: ## This list
	@grep -hE '^[a-z]+:.*## ' Makefile | awk -F ':.*## ' '{ printf "  make %-8s %s\n", $$1, $$2 }'

run: rocksdb ## Three nodes take real data, lose one, lose nothing, replay from anywhere
	$(CARGO) build --release --locked -p trilog-server --bin trilog
	$(TRILOG) demo --records $(RECORDS)

dev: rocksdb ## Three nodes to try things out on; Ctrl-C stops them
	$(CARGO) build --release --locked -p trilog-server --bin trilog
	$(TRILOG) dev

test: rocksdb ## Every test that needs no root and no network
	$(CARGO) test --workspace --locked

# Debug assertions stay on: what a simulation is for is to trip over them.
sim: rocksdb ## Disks, links and whole clusters under SEEDS=200 different fates
	TRILOG_SEEDS=$(SEEDS) $(CARGO) test --locked -p trilog-storage -p trilog-raft --lib -- \
		nothing_acknowledged promises_hold nobody_rests double_crash seed
	TRILOG_SEEDS=$(SEEDS) $(CARGO) test --locked -p trilog-server --test admission

bench: rocksdb ## Every figure, with the baseline it is a ratio of
	$(CARGO) build --release --locked -p trilog-server --bin trilog
	$(TRILOG) bench

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
