VARIANTS = ["base", *RUNS]
RESULTS = [
    "results/data/train.jsonl",
    "results/data/heldout.jsonl",
    "results/data/audit.json",
    "results/data/rejected.jsonl",
    "results/base/manifest.json",
    "results/base/model",
    *expand(
        "results/{variant}/{what}", variant=VARIANTS, what=["generations.jsonl", "scores.json", "preferences.json"]
    ),
    *expand("results/judges/{judge}.json", judge=JUDGES),
    *expand("results/{run}/judgements/{judge}.json", run=RUNS, judge=JUDGES),
    *expand("results/{run}/{what}", run=RUNS, what=["adapter", "training.jsonl", "merged", "smoke_test.json"]),
    *expand("results/{run}/{what}", run=RUNS, what=["fidelity.json", "fidelity_check.json"]),
    *expand("results/{variant}/gguf/model-{type}.gguf", variant=VARIANTS, type=["f16", *TYPES]),
    *expand("results/{variant}/gguf_scores/{type}.json", variant=VARIANTS, type=["f16", *TYPES]),
    *expand("results/{run}/gguf/Modelfile", run=RUNS),
]


rule summarize:
    input:
        code("summarize"),
        RESULTS,
        **{name: DATA[name] for name in TEST_SETS},
        benchmarks=[
            "benchmarks/fetch_model/base.tsv",
            "benchmarks/audit_dataset/data.tsv",
            *expand("benchmarks/fetch_dataset/{source}.tsv", source=HUB_SOURCES),
            *expand("benchmarks/build_dataset/{set}.tsv", set=SETS),
            *expand("benchmarks/train_dpo/{run}.tsv", run=RUNS),
            *expand(
                "benchmarks/{rule}/{variant}.tsv",
                rule=["generate_responses", "score_responses", "score_preferences"],
                variant=VARIANTS,
            ),
            *expand("benchmarks/check_judge/{judge}.tsv", judge=JUDGES),
            *expand("benchmarks/judge_responses/{run}.{judge}.tsv", run=RUNS, judge=JUDGES),
            *expand("benchmarks/merge_adapter/{run}.tsv", run=RUNS),
            *expand("benchmarks/convert_to_gguf/{variant}.tsv", variant=VARIANTS),
            *expand(
                "benchmarks/compute_imatrix/{variant}.tsv", variant=VARIANTS if config["export"]["imatrix"] else []
            ),
            *expand("benchmarks/quantize_gguf/{variant}.{type}.tsv", variant=VARIANTS, type=TYPES),
            *expand("benchmarks/score_gguf/{variant}.{type}.tsv", variant=VARIANTS, type=["f16", *TYPES]),
            *expand(
                "benchmarks/{rule}/{run}.tsv",
                rule=["smoke_test_gguf", "measure_fidelity", "check_fidelity"],
                run=RUNS,
            ),
        ],
    output:
        report("results/summary.json", caption="../report/summary.rst", category="Results"),
    log:
        "logs/summarize/all.log",
    conda:
        "../envs/dpo.yaml"
    params:
        config=as_setting(config),
    shell:
        """
        exec &> >(tee {log:q})
        python scripts/summarize.py --results results --benchmarks {input.benchmarks:q} \
            --prompts {input.prompts:q} --instructions {input.instructions:q} --adversarial {input.adversarial:q} \
            --config {params.config:q} --summary {output:q}
        """


rule render_report:
    input:
        code("render_report"),
        template="report/template.html",
        summary="results/summary.json",
    output:
        report("results/report.html", caption="../report/report.rst", category="Results"),
    log:
        "logs/render_report/all.log",
    conda:
        "../envs/dpo.yaml"
    shell:
        """
        exec &> >(tee {log:q})
        python scripts/render_report.py --summary {input.summary:q} --template {input.template:q} --report {output:q}
        """


rule render_model_card:
    input:
        code("render_model_card"),
        template="report/model_card.md",
        summary="results/summary.json",
    output:
        "results/{run}/README.md",
    log:
        "logs/render_model_card/{run}.log",
    conda:
        "../envs/dpo.yaml"
    shell:
        """
        exec &> >(tee {log:q})
        python scripts/render_model_card.py --summary {input.summary:q} --run {wildcards.run} \
            --template {input.template:q} --card {output:q}
        """
