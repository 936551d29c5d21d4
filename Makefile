# `make demo` shows it, `make test` is the whole gate. Needs Rust (rust-toolchain.toml pins which), and
# the tests need Go or LIFECYCLE_DIR (tests/lifecycle/README.md); what else is missing is installed
# where it is needed, on Debian, which takes root once.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build

CARGO ?= cargo
FUZZ_CASES ?= 20000
SOAK_SECONDS ?= 60
# The one of this machine, else one of our own, built once and kept until `make clean`.
DENY := $(or $(shell command -v cargo-deny 2>/dev/null),target/tools/bin/cargo-deny)
DENY_CHECK = $(DENY) --log-level error check --hide-inclusion-graph
MUTANTS := $(or $(shell command -v cargo-mutants 2>/dev/null),target/tools/bin/cargo-mutants)

.PHONY: help setup build demo test fmt lint deny advisories bench bench-extension fuzz mutants soak test-modes clean

help: ## what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 18

setup: ## installs what tests and benchmark need (Debian; quick when all is there); Go it only looks for
	@tests/setup-debian.sh tests
	@tests/lifecycle/build.sh --check

build: ## target/release/layoutfs
	@tests/setup-debian.sh build
	$(CARGO) build --release --locked

demo: ## a registry, a sparse layout, a mount, and how few bytes moved
	@tests/setup-debian.sh demo
	@tests/demo/demo.sh

# First what shows in seconds whether extending a run image works at all.
test: setup fmt lint deny ## the whole gate, which is what .ci/run runs
	$(CARGO) test --locked --test it lifecycle::smoke
	$(CARGO) test --locked

fmt:
	$(CARGO) fmt --all --check

lint:
	$(CARGO) clippy --locked --all-targets -- -D warnings

deny: $(DENY) ## licences, bans, sources of what enters the build
	$(DENY_CHECK) bans licenses sources

advisories: $(DENY) ## known vulnerabilities; fetches the RustSec database
	$(DENY_CHECK) advisories

# About three minutes; not linked into anything of ours.
target/tools/bin/cargo-deny:
	$(CARGO) install cargo-deny --locked --version '^0.19' --root target/tools --target-dir target/tools/build
	rm -rf target/tools/build

bench: setup build ## against what people use instead; lines in bench/results.md (BENCH='--tiny lazy_start': bench.py's arguments)
	$(CARGO) build --release --locked --example relay
	@bench/bench.py $(BENCH)

bench-extension: setup build ## a run image extended, against pull, unpack and the plain extender
	@bench/extension.sh

fuzz: ## random inputs: every property test with FUZZ_CASES of them, then each fuzz target if cargo-fuzz is here
	PROPTEST_CASES=$(FUZZ_CASES) $(CARGO) test --locked --release --lib --test it
ifneq ($(shell command -v cargo-fuzz 2>/dev/null),)
	for target in $$($(CARGO) fuzz list); do \
	    mkdir -p fuzz/corpus/$$target; \
	    $(CARGO) +nightly fuzz run $$target fuzz/corpus/$$target fuzz/seeds/$$target -- -max_total_time=60; \
	done
else
	@echo 'cargo-fuzz is not installed: only the property tests ran (cargo install cargo-fuzz, and a nightly toolchain)'
endif

# .cargo/mutants.toml says what is changed. Status 3: all were noticed, some only because the tests
# did not end any more, which they may also do by taking memory, hence the limit (KiB).
mutants: $(MUTANTS) ## the code that reads and merges layers, changed in 600 places: a test must fail each time (40 minutes)
	ulimit -v 8388608; export CARGO_PROFILE_DEV_DEBUG=0; \
	    $(MUTANTS) mutants --output target || test $$? = 3

target/tools/bin/cargo-mutants:
	$(CARGO) install cargo-mutants --locked --version '^27.1' --root target/tools --target-dir target/tools/build
	rm -rf target/tools/build

soak: ## a minute of readers, evictions and faults at once (SOAK_SECONDS, LAYOUTFS_SEED)
	LAYOUTFS_SOAK_SECONDS=$(SOAK_SECONDS) $(CARGO) test --locked --release --test it soak:: -- --nocapture

# One-byte reads are elsewhere: `tests/it/one_byte.rs`, and pieces of one byte in the tests of decoders.
MODES ?= one-event-thread one-span-cache no-push no-poll no-fresh no-passthrough small-reads \
    one-event-thread,one-span-cache,no-push,no-poll,no-fresh,no-passthrough,small-reads

test-modes: setup ## tests/it with one event thread, memory for one span, pushing off, READs of a page; each, then all (MODES)
	failed=; for mode in $(MODES); do \
	    echo "mode $$mode"; \
	    LAYOUTFS_TEST=$$mode $(CARGO) test --locked --test it -- --skip lifecycle --skip tidy \
	        || failed="$$failed $$mode"; \
	done; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

clean:
	$(CARGO) clean
