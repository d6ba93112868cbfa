# The commands of this repository; the work is in the scripts.

CARGO ?= cargo

.PHONY: build check test test-matrix test-vm chaos soak demo bench

build:
	$(CARGO) build --release --locked

# Format, lints, layers, audit of the dependencies.
check:
	tests/setup.sh
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --locked -- -D warnings
	$(CARGO) test --locked --test layers --test deps --test dashboard

# All tests, on this machine's containerd.
test:
	tests/run.sh

# The end-to-end tests on containerd 1.6, 1.7 and 2.x; SUITE=core for a part of them.
test-matrix:
	tests/matrix.sh $(SUITE)

# End-to-end tests in a guest with cgroup v2, systemd and AppArmor; NAME=part of a name for
# some of them. Takes an hour.
test-vm:
	tests/vm/run.sh $(NAME)

# Every step of every call that changes something is cut off, in three ways.
chaos:
	tests/chaos.sh

# An hour of random work and random faults on 99 pods; prints seed and figures.
soak:
	tests/soak.sh

demo:
	deploy/demo.sh

# Lifecycle calls, pulls, logs, exec and port-forward beside containerd's own plugin.
bench:
	tests/setup.sh
	$(CARGO) bench --locked
