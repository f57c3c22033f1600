# make run · make test · make lint · make bench · make torture: each sets up .venv first, where it is missing or older
# than the lock.
# Another Python: make PYTHON=/path/to/python3.12. Fewer cores: make CORES=2. More options: make test ARGS="-k gguf".

PYTHON ?= python3
CORES ?= all

# For single commands only: exported, it would also change the Python that sets up .venv.
IN_VENV = PATH="$(CURDIR)/.venv/bin:$$PATH"

.PHONY: run test lint bench torture .venv

run: .venv/.installed
	@start=$$(date +%s); \
	$(IN_VENV) snakemake --cores $(CORES) $(ARGS) || exit $$?; \
	seconds=$$(($$(date +%s) - start)); \
	echo "report: results/report.html, in $$((seconds / 60)) min $$((seconds % 60)) s"

test: .venv/.installed
	@$(IN_VENV) pytest $(ARGS)

# Without ruff's cache: it keeps a file's verdict when a module that the file imports comes or goes.
lint: .venv/.installed
	@$(IN_VENV) ruff check --no-cache .
	@$(IN_VENV) ruff format --check .
	@$(IN_VENV) snakefmt --check Snakefile rules
	@$(IN_VENV) snakemake --lint

bench: .venv/.installed
	@$(IN_VENV) snakemake --cores all --quiet all -- results/base/model results/dpo/adapter results/data/heldout.jsonl
	@$(IN_VENV) PYTHONPATH=scripts python bench/generation.py --model results/base/model
	@$(IN_VENV) PYTHONPATH=scripts python bench/export.py --model results/base/model --adapter results/dpo/adapter \
		--heldout results/data/heldout.jsonl
	@$(IN_VENV) PYTHONPATH=scripts python bench/training.py --model results/base/model --adapter results/dpo/adapter
	@$(IN_VENV) python bench/planning.py
	@$(IN_VENV) python bench/dataset.py --model results/base/model $(ARGS)

# Everything that can fail is made to fail, which takes about MINUTES; a table is printed in the end.
MINUTES ?= 90
torture: .venv/.installed
	@$(IN_VENV) PYTHONPATH=scripts:tests python -m torture --minutes $(MINUTES) $(ARGS)

.venv: .venv/.installed

# The file is written last, so that an interrupted set-up is completed by the next call.
.venv/.installed: envs/requirements.txt envs/requirements.lock envs/requirements-source.lock \
		envs/requirements-cuda.txt envs/requirements-cuda.lock envs/llama-cpp-python.sha256 envs/install.py
	@$(PYTHON) envs/install.py .venv
