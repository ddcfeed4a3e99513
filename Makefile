# Everything a developer or CI does here. Needs Python 3.11 or newer, make and a package index; `make PYTHON=…` chooses.
PYTHON ?= python3
ARGS ?=
VENV := .venv
OLDEST := .venv-oldest
NEWEST := .venv-newest
# Tests wait more than they compute, so there may be more of these than cores.
WORKERS ?= 4
PYTEST = -m pytest -n $(WORKERS) --dist loadfile
# What the SDK does without a server, a store and a browser.
SDK_TESTS := $(addprefix --ignore=tests/,server store analytics importers faults test_cli.py test_typing.py)
export PYTHON
# Browsers of playwright's own stay with the environment that wants them, whatever HOME is.
export PLAYWRIGHT_BROWSERS_PATH := $(CURDIR)/$(VENV)/browsers

.PHONY: help demo test test-oldest test-newest lint types wheel bench clean

help:            ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' Makefile

demo: $(VENV)/server.stamp            ## record example conversations and open the dashboard (ARGS="--no-serve")
	$(VENV)/bin/contextwrap demo $(ARGS)

test: $(VENV)/dev.stamp $(VENV)/chromium            ## every test (ARGS="-k outbox")
	CHROMIUM="$$(cat $(VENV)/chromium)" $(VENV)/bin/python $(PYTEST) $(ARGS)

test-oldest: $(OLDEST)/sdk.stamp            ## the SDK's tests on the oldest LangChain it promises to work with
	$(OLDEST)/bin/python $(PYTEST) $(SDK_TESTS) --ignore=tests/wrapped $(ARGS)

test-newest: $(NEWEST)/sdk.stamp            ## the SDK's tests on the newest Python of this machine
	$(NEWEST)/bin/python $(PYTEST) $(SDK_TESTS) $(ARGS)

lint: $(VENV)/dev.stamp            ## style
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

types: $(VENV)/dev.stamp            ## types
	$(VENV)/bin/mypy

wheel: $(VENV)/dev.stamp            ## build the wheel and look into it
	scripts/wheel $(VENV)/bin/python

bench: $(VENV)/dev.stamp            ## each benchmark answers its question
	set -e; for file in $(filter-out benchmarks/corpus.py benchmarks/report.py,$(wildcard benchmarks/*.py)); do echo "== $$file"; $(VENV)/bin/python "$$file"; done

clean:            ## forget the environments
	rm -rf $(VENV) $(OLDEST) $(NEWEST)

$(VENV)/server.stamp: pyproject.toml
	scripts/venv $(VENV) -e '.[server]'
	touch $@

$(VENV)/dev.stamp: pyproject.toml
	scripts/venv $(VENV) -e '.[server,dev]'
	touch $@ $(VENV)/server.stamp

$(OLDEST)/sdk.stamp: pyproject.toml
	scripts/venv $(OLDEST) -e '.[server,dev]' 'langchain-core==1.0.0' 'langchain-classic==1.0.0' 'langgraph==1.0.0' \
	    'langchain==1.0.0' 'langchain-openai==1.0.0' 'langchain-tests==1.0.0'
	touch $@

$(NEWEST)/sdk.stamp: pyproject.toml
	PYTHON="$$(scripts/newest)" scripts/venv $(NEWEST) -e '.[server,dev]'
	touch $@

$(VENV)/chromium: $(VENV)/dev.stamp
	scripts/chromium $(VENV)/bin/python > $@.new
	mv $@.new $@
