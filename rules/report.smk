RESULTS = [
    "results/data/train.jsonl",
    "results/data/heldout.jsonl",
    "results/data/audit.json",
    "results/data/rejected.jsonl",
    "results/base/manifest.json",
    "results/base/model",
    *expand("results/judges/{judge}.json", judge=JUDGES),
    *measured_results(["base", *RUNS]),
    *trained_results(RUNS),
    *expand("results/{run}/judgements/{judge}.json", run=RUNS, judge=JUDGES),
    *expand("results/{run}/{what}", run=RUNS, what=["smoke_test.json", "fidelity_check.json", "gguf/Modelfile"]),
]
# The jobs that wrote them, as `rule/subject`: so are their manifests, logs and benchmarks called.
JOBS = [
    *expand("fetch_dataset/{source}", source=HUB_SOURCES),
    "fetch_model/base",
    *expand("build_dataset/{set}", set=SETS),
    "audit_dataset/data",
    *expand(
        "compute_reference_logps/{precision}",
        precision=sorted({precision_of(run) for run in TRAINED if needs_reference(run)}),
    ),
    *training_jobs(RUNS),
    *measuring_jobs(["base", *RUNS]),
    *expand("check_judge/{judge}", judge=JUDGES),
    *expand("judge_responses/{run}/{judge}", run=RUNS, judge=JUDGES),
    *expand("{rule}/{run}", rule=["smoke_test_gguf", "check_fidelity"], run=RUNS),
]
# Swept runs are many: of each, the report reads no more than its summary.
SWEPT_SUMMARIES = expand("results/{run}/summary.json", run=SWEPT)
SWEPT_ONLY = [run for run in SWEPT if run not in RUNS]
REPORTS = ["results/summary.json", "results/report.html", *expand("results/{run}/README.md", run=RUNS)]
EVERYTHING = [*RESULTS, *measured_results(SWEPT_ONLY), *trained_results(SWEPT_ONLY), *SWEPT_SUMMARIES, *REPORTS]
ALL_JOBS = [
    *JOBS,
    *measuring_jobs(SWEPT_ONLY),
    *training_jobs(SWEPT_ONLY),
    *expand("summarize_run/{run}", run=SWEPT),
    "summarize/all",
    "render_report/all",
    *expand("render_model_card/{run}", run=RUNS),
]


rule summarize_run:
    input:
        manifests(*(f"{rule}/{{run}}" for rule in [*EVALUATING, "train_dpo", "measure_fidelity"])),
        training="results/{run}/training.jsonl",
        generations="results/{run}/generations.jsonl",
        scores="results/{run}/scores.json",
        preferences="results/{run}/preferences.json",
        fidelity="results/{run}/fidelity.json",
    output:
        summary="results/{run}/summary.json",
        manifest="results/manifests/summarize_run/{run}.json",
    log:
        "logs/summarize_run/{run}.log",
    benchmark:
        "benchmarks/summarize_run/{run}.tsv"
    conda:
        "../envs/dpo.yaml"
    threads: 1
    resources:
        **resources_of("summarize_run"),
    params:
        code=code_digest("summarize_run"),
        settings=lambda wildcards: as_setting({"training": run_settings(wildcards.run), "shipped_type": SHIPPED}),
    shell:
        """
        exec &> >(tee {log:q})
        exec python scripts/run_stage.py --rule summarize_run --inputs {input:q} --outputs {output:q} -- \
            python scripts/summarize_run.py --training {input.training:q} --generations {input.generations:q} \
            --scores {input.scores:q} --preferences {input.preferences:q} --fidelity {input.fidelity:q} \
            --settings {params.settings:q} --summary {output.summary:q}
        """


rule summarize:
    input:
        manifests(*JOBS, *expand("summarize_run/{run}", run=SWEPT)),
        RESULTS,
        **TEST_FILES,
        swept=SWEPT_SUMMARIES,
        benchmarks=expand("benchmarks/{job}.tsv", job=JOBS),
    output:
        summary=report("results/summary.json", caption="../report/summary.rst", category="Results"),
        manifest="results/manifests/summarize/all.json",
    log:
        "logs/summarize/all.log",
    group:
        "report"
    conda:
        "../envs/dpo.yaml"
    threads: 1
    resources:
        **resources_of("summarize"),
    params:
        code=code_digest("summarize"),
        results=lambda wildcards, output: os.path.dirname(output.summary),
        swept=lambda wildcards, input: f"--swept {input.swept}" if input.swept else "",
        config=as_setting(config),
    shell:
        """
        exec &> >(tee {log:q})
        exec python scripts/run_stage.py --rule summarize --inputs {input:q} --outputs {output:q} -- \
            python scripts/summarize.py --results {params.results:q} --benchmarks {input.benchmarks:q} \
            --prompts {input.prompts:q} --instructions {input.instructions:q} --adversarial {input.adversarial:q} \
            {params.swept} --config {params.config:q} --summary {output.summary:q}
        """


rule render_report:
    input:
        manifests("summarize/all"),
        own_file("report/sweep.html"),
        template=own_file("report/template.html"),
        summary="results/summary.json",
    output:
        report=report("results/report.html", caption="../report/report.rst", category="Results"),
        manifest="results/manifests/render_report/all.json",
    log:
        "logs/render_report/all.log",
    group:
        "report"
    conda:
        "../envs/dpo.yaml"
    threads: 1
    resources:
        **resources_of("render_report"),
    params:
        code=code_digest("render_report"),
    shell:
        """
        exec &> >(tee {log:q})
        exec python scripts/run_stage.py --rule render_report --inputs {input:q} --outputs {output:q} -- \
            python scripts/render_report.py --summary {input.summary:q} --template {input.template:q} --report {output.report:q}
        """


rule render_model_card:
    input:
        manifests("summarize/all"),
        template=own_file("report/model_card.md"),
        summary="results/summary.json",
    output:
        card="results/{run}/README.md",
        manifest="results/manifests/render_model_card/{run}.json",
    log:
        "logs/render_model_card/{run}.log",
    group:
        "report"
    conda:
        "../envs/dpo.yaml"
    threads: 1
    resources:
        **resources_of("render_model_card"),
    params:
        code=code_digest("render_model_card"),
    shell:
        """
        exec &> >(tee {log:q})
        exec python scripts/run_stage.py --rule render_model_card --inputs {input:q} --outputs {output:q} -- \
            python scripts/render_model_card.py --summary {input.summary:q} --run {wildcards.run} \
            --template {input.template:q} --card {output.card:q}
        """


# Last, so that everything is compared with its manifest once more, and what ships is what was made. Not in the reports'
# group: at the end of each job, Snakemake goes through all that a group depends on, which here are all jobs of all runs.
rule record_provenance:
    input:
        EVERYTHING,
        expand("results/manifests/{job}.json", job=ALL_JOBS),
    output:
        provenance="results/provenance.json",
        components="results/sbom.cdx.json",
        manifest="results/manifests/record_provenance/all.json",
    log:
        "logs/record_provenance/all.log",
    conda:
        "../envs/dpo.yaml"
    threads: 1
    resources:
        **resources_of("record_provenance"),
    params:
        code=code_digest("record_provenance"),
        config=as_setting(config),
    shell:
        """
        exec &> >(tee {log:q})
        exec python scripts/run_stage.py --rule record_provenance --inputs - --outputs {output:q} -- \
            python scripts/record_provenance.py --config {params.config:q} --provenance {output.provenance:q} \
            --components {output.components:q} < <(printf '%s\n' {input:q})
        """
