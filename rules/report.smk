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
    *expand("results/{run}/gguf_preferences.json", run=RUNS),
    *expand("results/{run}/{what}", run=RUNS, what=["adapter", "training.jsonl", "merged", "smoke_test.json"]),
    *expand("results/{run}/gguf/{what}", run=RUNS, what=["model-f16.gguf", "model-q4_k_m.gguf", "Modelfile"]),
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
            *expand(
                "benchmarks/{rule}/{run}.tsv",
                rule=["merge_adapter", "convert_to_gguf", "quantize_gguf", "smoke_test_gguf", "score_gguf"],
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
