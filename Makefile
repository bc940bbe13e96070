# make demo   trains a 1-Lipschitz network on the digits, certifies and attacks it, draws the figure
# make test   the tests, few cases of each; make test-long: all cases; make test-quick: some tests
# Both set up what they need in $(VENV). Another Python: make test PYTHON=python3.13 VENV=.venv-3.13

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
RUN = $(VENV)/bin/python
READY = $(VENV)/.ready
PYTEST = $(RUN) -m pytest -n $(WORKERS) --dist worksteal
QUICK = tests/contracts_test.py tests/typing_test.py tests/numerics_test.py tests/lowering_test.py \
  tests/margin_test.py tests/soundness_test.py::TestUpperBounds tests/spectral/exact_test.py \
  tests/spectral/network_test.py::test_loops_of_known_length_are_written_out \
  tests/layers/sll_test.py tests/layers/lmi_test.py tests/layers/head_test.py \
  tests/smoothing/confidence_test.py tests/smoothing/gaussian_test.py \
  tests/training/step_test.py tests/training/checkpoint_test.py tests/data/digits_test.py

.PHONY: demo test test-long test-quick lint notebooks clean

demo: $(READY)
	$(RUN) -m experiments.train digits
	$(RUN) -m experiments.certify runs/digits

test: $(READY)
	$(PYTEST) lipjax tests $(ARGS)

test-long: $(READY)
	$(PYTEST) lipjax tests -m "slow or not slow" $(ARGS)

test-quick: $(READY)
	$(PYTEST) $(QUICK) $(ARGS)

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

notebooks: $(READY)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[notebooks]'
	$(RUN) -m jupytext --quiet --to ipynb notebooks/*.py
	$(VENV)/bin/jupyter execute --inplace notebooks/*.ipynb

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 13), f"lipjax needs Python 3.11 to 3.13, not {sys.version}"'
	$(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,experiments,data,interop]'
	touch $(READY)

clean:
	rm -rf $(VENV) runs .jax_cache
