# `make demo` shows it, `make test` is the whole gate. Needs Rust (rust-toolchain.toml pins which);
# everything else is installed by `make setup`, which needs root once.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build

CARGO ?= cargo
FUZZ_CASES ?= 20000
DENY := $(shell command -v cargo-deny 2>/dev/null)
DENY_CHECK = $(CARGO) deny --log-level error check --hide-inclusion-graph

.PHONY: help setup build demo test fmt lint deny advisories bench fuzz clean

help: ## what there is
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 14

setup: ## installs what build, tests, demo and benchmark need (Debian; quick when all is there)
	@command -v cc >/dev/null || { apt-get update -qq && apt-get install -y -qq gcc libc6-dev; }
	@if [ -x tests/setup-debian.sh ]; then tests/setup-debian.sh; fi

build: setup ## target/release/layoutfs
	$(CARGO) build --release --locked

demo: setup ## a registry, a sparse layout, a mount, and how few bytes moved
	@tests/demo/demo.sh

test: setup fmt lint ## formats, lints and tests: what .ci/run runs
	$(CARGO) test --locked

fmt:
	$(CARGO) fmt --all --check

lint: ## clippy, and cargo-deny where it is installed (`make deny` installs it)
	$(CARGO) clippy --locked --all-targets -- -D warnings
ifneq ($(DENY),)
	$(DENY_CHECK) bans licenses sources
else
	@echo 'cargo-deny is not installed: licences, bans and sources not checked (make deny)'
endif

deny: ## licences, bans, sources; installs cargo-deny, about three minutes the first time
	command -v cargo-deny >/dev/null || $(CARGO) install cargo-deny --locked
	$(DENY_CHECK) bans licenses sources

advisories: ## known vulnerabilities; fetches the RustSec database
	command -v cargo-deny >/dev/null || $(CARGO) install cargo-deny --locked
	$(DENY_CHECK) advisories

bench: build ## against pull and unpack; appends a line to bench/results.md
	@bench/first_contact.sh

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

clean:
	$(CARGO) clean
