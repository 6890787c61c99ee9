PYTHON ?= python3
PY = .venv/bin/python

run: .venv/ready          ## run the notebook with the trained weights; write and verify the submission
	$(PY) run.py

train: .venv/ready        ## the same, training from scratch; run it again to resume
	$(PY) run.py RETRAIN=True

test: .venv/ready         ## ruff and all tests
	$(PY) -m ruff check
	$(PY) -m pytest -q

data: .venv/ready         ## fetch and verify CIFAR-10 only
	$(PY) -c "from run import load_definitions; load_definitions().load_dataset()"

help:                     ## this list
	@sed -n 's/^\([a-z]*\):.*## /make \1  \t/p' Makefile

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install -q --disable-pip-version-check -r requirements.txt
	touch $@

.PHONY: run train test data help
