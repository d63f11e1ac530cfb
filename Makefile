# beampilot. `make demo` shows it at work, `make test` proves it; `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup build demo test soak soak-real lint bench gpu-bundle gpu-check doc clean

ENV := . scripts/env.sh;

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what the build needs (apt) or say what to install
	@scripts/setup.sh

build: setup ## build the release executable, target/release/beampilot
	@$(ENV) cargo build --release --locked $$BEAMPILOT_FEATURES

demo: build ## play a beamline and watch it being reconstructed, without and with mpiexec
	@scripts/demo.sh

test: setup ## run every test, for each MPI that is installed
	@scripts/test.sh

soak: setup ## simulate faulty shifts with fresh seeds until stopped, or until one fails
	@$(ENV) cargo test --locked --release --lib $$BEAMPILOT_FEATURES sim::tests::soak -- --ignored --nocapture

soak-real: build ## kill and stop real processes of two overlapping pilots, 220 times, some for 69 to 90 s
	@$(ENV) BEAMPILOT_FAULT_SCANS=$${BEAMPILOT_FAULT_SCANS:-400} BEAMPILOT_FAULT_BLOWS=$${BEAMPILOT_FAULT_BLOWS:-220} \
	  BEAMPILOT_FAULT_LEASE_S=$${BEAMPILOT_FAULT_LEASE_S:-60} BEAMPILOT_FAULT_PAUSE_MS=$${BEAMPILOT_FAULT_PAUSE_MS:-6000} \
	  cargo test --locked $$BEAMPILOT_FEATURES --test embedded_executors --test 'mpi_pilot*' a_campaign_under_fire -- --nocapture

lint: setup ## formatting, clippy and documentation, warnings refused
	@$(ENV) cargo fmt --all --check
	@$(ENV) cargo clippy --locked --workspace --all-targets $$BEAMPILOT_FEATURES -- -D warnings
	@$(ENV) cargo clippy --locked --workspace --all-targets --no-default-features -- -D warnings
	@$(ENV) RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps $$BEAMPILOT_FEATURES
	@if command -v cargo-deny >/dev/null; then cargo deny check; else echo "lint: cargo-deny is not installed; skipped" >&2; fi
	@if command -v shellcheck >/dev/null; then shellcheck -x scripts/*.sh .ci/run; else echo "lint: shellcheck is not installed; skipped" >&2; fi

bench: build ## measure the numerics and the runtime itself
	@$(ENV) cargo bench --locked $$BEAMPILOT_FEATURES
	@target/release/beampilot bench dispatch
	@$(ENV) if [ -z "$$BEAMPILOT_FEATURES" ] && [ -n "$$BEAMPILOT_MPIEXEC" ]; then "$$BEAMPILOT_MPIEXEC" -n 4 target/release/beampilot bench dispatch; fi

gpu-bundle: setup ## pack what proves the GPU code on a machine with a card: target/gpu-check.tar.gz
	@scripts/gpu-bundle.sh

gpu-check: gpu-bundle ## prove and measure the GPU code, here or on GPU_HOST (by ssh); writes docs/gpu-results.md
	@scripts/gpu-check.sh

doc: setup ## reference in target/doc, manual pages in target/man, completions in target/completions
	@$(ENV) cargo doc --locked --no-deps $$BEAMPILOT_FEATURES
	@$(ENV) cargo run --locked -q $$BEAMPILOT_FEATURES -- man target/man
	@mkdir -p target/completions
	@$(ENV) for shell in bash zsh fish; do cargo run --locked -q $$BEAMPILOT_FEATURES -- completions $$shell >target/completions/beampilot.$$shell; done
	@echo "target/doc/beampilot/index.html  target/man/  target/completions/"

clean: ## remove everything built, and the demo's folder
	@cargo clean
	@rm -rf demo-run
