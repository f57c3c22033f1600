"""Write a run's model card, beside its merged model and its GGUF files, from what was measured.

    python scripts/render_model_card.py --summary results/summary.json --run dpo \
        --template report/model_card.md --card results/dpo/README.md
"""

import argparse
import html
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dpo import cli
from dpo.artifacts import read_json, staged_file

# What the hub knows of the models that the presets name.
PRESETS = {"base_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "license": "apache-2.0", "language": "en"}
TASK = {"task_type": "text-generation", "task_name": "Text generation"}


def describe(summary: dict, run: str) -> ModelCardData:
    """Return the metadata of a run's card: where it comes from, and its measured figures in the hub's model-index."""
    source = summary["model"]["source"]
    known = PRESETS if "preset" in source else {"base_model": source["repo"]} if "repo" in source else {}
    measured, shipped = summary["variants"][run], summary["runs"][run]["shipped"]
    kind = summary["shipped_type"]
    figures = [
        ("held-out preference pairs", "preference-pairs", "accuracy", measured["heldout"]["accuracy_implicit_reward"],
         "Pairs preferred rightly, by implicit reward"),
        ("held-out preference pairs", "preference-pairs", "accuracy", shipped["accuracy_implicit_reward"],
         f"Pairs preferred rightly, by implicit reward, {kind} GGUF"),
        ("instructions", "instructions", "accuracy", measured["instructions"], "Instructions followed"),
        ("adversarial prompts", "adversarial-prompts", "accuracy", measured["adversarial"],
         "Adversarial prompts withstood"),
        ("neutral text", "neutral-text", "perplexity", {"value": measured["neutral"]["perplexity"]}, "Perplexity"),
    ]  # fmt: skip
    results = [
        EvalResult(
            **TASK,
            dataset_name=dataset,
            dataset_type=dataset_type,
            metric_type=metric,
            metric_name=name,
            metric_value=round(found["value"], 4),
        )
        for dataset, dataset_type, metric, found, name in figures
    ]
    return ModelCardData(
        **known,
        model_name=run,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["dpo", "trl", "unsloth", "peft", "gguf", "llama.cpp"],
        eval_results=results,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--summary", type=Path, required=True, help="summary.json")
    parser.add_argument("--run", required=True, help="run to describe")
    parser.add_argument("--template", type=Path, required=True, help="Jinja2 template of the card")
    parser.add_argument("--card", type=Path, required=True, help="Markdown file to write")
    arguments = parser.parse_args()

    summary = read_json(arguments.summary)
    metadata = describe(summary, arguments.run)
    card = ModelCard.from_template(
        metadata,
        template_path=str(arguments.template),
        name=arguments.run,
        # A path is any text; Markdown would take markup in it for its own.
        base_name=metadata.base_model or html.escape(" ".join(summary["model"]["source"]["path"].split())),
        summary=summary,
        measured=summary["variants"][arguments.run],
        run=summary["runs"][arguments.run],
    )
    with staged_file(arguments.card) as partial:
        card.save(partial)


if __name__ == "__main__":
    cli.run(main)
