# SPDX-License-Identifier: Apache-2.0
# Two commands for people; builds proper are CMake presets. Works from any directory with -C.
SCRIPTS := $(dir $(abspath $(lastword $(MAKEFILE_LIST))))scripts

.PHONY: help demo test bench-cpu
help:
	@echo "make demo   build, run a real input through a ring of four, write pictures"
	@echo "make test   build and run every test, with sanitizers and fuzzers"
	@echo "make bench-cpu   time the CPU backend against its bars, JAX and PyTorch"

demo:
	@$(SCRIPTS)/demo

test:
	@$(SCRIPTS)/test

bench-cpu:
	@$(SCRIPTS)/bench-cpu
