PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: demo test soak bench setup clean

demo: setup  ## train a GAN on the embedded images, about two minutes, and say where the picture is
	$(RUN) examples/dcgan.py

test: setup  ## run all tests
	$(RUN) -m pytest -n auto --maxprocesses 4 --dist worksteal

soak: setup  ## run all tests and all they can try: more kills, damages and random inputs
	CUSTOMSTEP_SOAK=1 $(RUN) -m pytest -n auto --maxprocesses 4 --dist worksteal

bench: setup  ## compare speed: see tests/benchmarks/README.md
	$(RUN) -m tests.benchmarks.step
	$(RUN) -m tests.benchmarks.frozen
	$(RUN) -m tests.benchmarks.scaling
	$(RUN) -m tests.benchmarks.resume
	$(RUN) -m tests.benchmarks.gan --quality 120

setup: .venv/ready  ## make .venv, once

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	touch $@

clean:  ## remove what the commands above made
	rm -rf .venv runs
