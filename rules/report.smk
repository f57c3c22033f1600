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
# The jobs that wrote them, as `rule/subject`: so are their manifests, logs and benchmarks called.
JOBS = [
    *expand("fetch_dataset/{source}", source=HUB_SOURCES),
    "fetch_model/base",
    *expand("build_dataset/{set}", set=SETS),
    "audit_dataset/data",
    *expand(
        "compute_reference_logps/{precision}",
        precision=sorted({precision_of(run) for run in RUNS if needs_reference(run)}),
    ),
    *expand("train_dpo/{run}", run=RUNS),
    *expand("{rule}/{variant}", rule=["generate_responses", "score_responses", "score_preferences"], variant=VARIANTS),
    *expand("check_judge/{judge}", judge=JUDGES),
    *expand("judge_responses/{run}/{judge}", run=RUNS, judge=JUDGES),
    *expand("merge_adapter/{run}", run=RUNS),
    *expand("convert_to_gguf/{variant}", variant=VARIANTS),
    *expand("compute_imatrix/{variant}", variant=VARIANTS if config["export"]["imatrix"] else []),
    *expand("quantize_gguf/{variant}/{type}", variant=VARIANTS, type=TYPES),
    *expand("score_gguf/{variant}/{type}", variant=VARIANTS, type=["f16", *TYPES]),
    *expand("{rule}/{run}", rule=["smoke_test_gguf", "measure_fidelity", "check_fidelity"], run=RUNS),
]
REPORTS = ["results/summary.json", "results/report.html", *expand("results/{run}/README.md", run=RUNS)]


rule summarize:
    input:
        code("summarize"),
        manifests(*JOBS),
        RESULTS,
        **{name: DATA[name] for name in TEST_SETS},
        benchmarks=expand("benchmarks/{job}.tsv", job=JOBS),
    output:
        summary=report("results/summary.json", caption="../report/summary.rst", category="Results"),
        manifest="results/manifests/summarize/all.json",
    log:
        "logs/summarize/all.log",
    conda:
        "../envs/dpo.yaml"
    params:
        config=as_setting(config),
    shell:
        """
        exec &> >(tee {log:q})
        exec python scripts/run_stage.py --rule summarize --inputs {input:q} --outputs {output:q} -- \
            python scripts/summarize.py --results results --benchmarks {input.benchmarks:q} \
            --prompts {input.prompts:q} --instructions {input.instructions:q} --adversarial {input.adversarial:q} \
            --config {params.config:q} --summary {output.summary:q}
        """


rule render_report:
    input:
        code("render_report"),
        manifests("summarize/all"),
        template="report/template.html",
        summary="results/summary.json",
    output:
        report=report("results/report.html", caption="../report/report.rst", category="Results"),
        manifest="results/manifests/render_report/all.json",
    log:
        "logs/render_report/all.log",
    conda:
        "../envs/dpo.yaml"
    shell:
        """
        exec &> >(tee {log:q})
        exec python scripts/run_stage.py --rule render_report --inputs {input:q} --outputs {output:q} -- \
            python scripts/render_report.py --summary {input.summary:q} --template {input.template:q} --report {output.report:q}
        """


rule render_model_card:
    input:
        code("render_model_card"),
        manifests("summarize/all"),
        template="report/model_card.md",
        summary="results/summary.json",
    output:
        card="results/{run}/README.md",
        manifest="results/manifests/render_model_card/{run}.json",
    log:
        "logs/render_model_card/{run}.log",
    conda:
        "../envs/dpo.yaml"
    shell:
        """
        exec &> >(tee {log:q})
        exec python scripts/run_stage.py --rule render_model_card --inputs {input:q} --outputs {output:q} -- \
            python scripts/render_model_card.py --summary {input.summary:q} --run {wildcards.run} \
            --template {input.template:q} --card {output.card:q}
        """


# Last, so that everything is compared with its manifest once more, and what ships is what was made.
rule record_provenance:
    input:
        code("record_provenance"),
        RESULTS,
        REPORTS,
        manifests=expand(
            "results/manifests/{job}.json",
            job=[*JOBS, "summarize/all", "render_report/all", *expand("render_model_card/{run}", run=RUNS)],
        ),
    output:
        provenance="results/provenance.json",
        components="results/sbom.cdx.json",
        manifest="results/manifests/record_provenance/all.json",
    log:
        "logs/record_provenance/all.log",
    conda:
        "../envs/dpo.yaml"
    params:
        config=as_setting(config),
    shell:
        """
        exec &> >(tee {log:q})
        exec python scripts/run_stage.py --rule record_provenance --inputs {input:q} --outputs {output:q} -- \
            python scripts/record_provenance.py --manifests {input.manifests:q} --config {params.config:q} \
            --provenance {output.provenance:q} --components {output.components:q}
        """
