# The rules here come before whatever else could start: a fault in the data stops the workflow before time goes into
# training or answers.
rule fetch_dataset:
    output:
        folder=directory("results/data/sources/{source}"),
        manifest="results/manifests/fetch_dataset/{source}.json",
    log:
        "logs/fetch_dataset/{source}.log",
    benchmark:
        "benchmarks/fetch_dataset/{source}.tsv"
    priority: 100
    conda:
        "../envs/dpo.yaml"
    threads: 1
    resources:
        **resources_of("fetch_dataset"),
    params:
        code=code_digest("fetch_dataset"),
        settings=lambda wildcards: as_setting(HUB_SOURCES[wildcards.source]),
    shell:
        """
        exec &> >(tee {log:q})
        exec python scripts/run_stage.py --rule fetch_dataset --outputs {output:q} -- \
            python scripts/fetch_dataset.py --settings {params.settings:q} --folder {output.folder:q}
        """


# One job a set, the training set first, and what both share leaves the other one: so that a changed held-out pair or test
# prompt never trains the model again.
rule build_dataset:
    input:
        lambda wildcards: manifests("fetch_model/base", *made_before(wildcards.set)),
        sources=lambda wildcards: [
            source.get("folder") or own_file(source["path"]) for source in sources_of(wildcards.set)
        ],
        trained=lambda wildcards: "results/data/train.jsonl" if wildcards.set == "heldout" else [],
        trained_prompts=lambda wildcards: "results/data/train.prompts.npy" if wildcards.set == "heldout" else [],
        model="results/base/model",
    output:
        dataset="results/data/{set}.jsonl",
        rejected="results/data/{set}.rejected.jsonl",
        prompts="results/data/{set}.prompts.npy",
        audit="results/data/{set}.audit.json",
        manifest="results/manifests/build_dataset/{set}.json",
    log:
        "logs/build_dataset/{set}.log",
    benchmark:
        "benchmarks/build_dataset/{set}.tsv"
    priority: 100
    conda:
        "../envs/dpo.yaml"
    threads: all_cores
    resources:
        **resources_of("build_dataset"),
    params:
        code=code_digest("build_dataset"),
        trained=lambda wildcards, input: f"--trained {input.trained}" if input.trained else "",
        # Snakemake compares no param that is made from its inputs, so settings alone would go unseen.
        asked=lambda wildcards: as_setting(dataset_settings(wildcards.set)),
        settings=lambda wildcards, input: as_setting(
            dataset_settings(wildcards.set) | {"sources": sources_at(wildcards.set, input.sources)}
        ),
    shell:
        """
        exec &> >(tee {log:q})
        exec python scripts/run_stage.py --rule build_dataset --inputs {input:q} --outputs {output:q} -- \
            python scripts/build_dataset.py --model {input.model:q} --settings {params.settings:q} {params.trained} \
            --dataset {output.dataset:q} --rejected {output.rejected:q} --prompts {output.prompts:q} \
            --audit {output.audit:q}
        """


rule audit_dataset:
    input:
        manifests("fetch_model/base", *(f"build_dataset/{name}" for name in SETS)),
        expand("results/data/{set}.{what}", set=SETS, what=["jsonl", "rejected.jsonl", "prompts.npy", "audit.json"]),
        **TEST_FILES,
        model="results/base/model",
    output:
        audit="results/data/audit.json",
        rejected="results/data/rejected.jsonl",
        manifest="results/manifests/audit_dataset/data.json",
    log:
        "logs/audit_dataset/data.log",
    benchmark:
        "benchmarks/audit_dataset/data.tsv"
    # Not an input of training, which would then run again whenever a test prompt changes.
    priority: 100
    conda:
        "../envs/dpo.yaml"
    threads: 1
    resources:
        **resources_of("audit_dataset"),
    params:
        code=code_digest("audit_dataset"),
        data=lambda wildcards, output: os.path.dirname(output.audit),
        settings=as_setting(
            {key: DATA[key] for key in ("max_prompt_length", "near_duplicate", "max_length_auc", "tolerance")}
        ),
    shell:
        """
        exec &> >(tee {log:q})
        exec python scripts/run_stage.py --rule audit_dataset --inputs {input:q} --outputs {output:q} -- \
            python scripts/audit_dataset.py --data {params.data:q} --prompts {input.prompts:q} \
            --instructions {input.instructions:q} --adversarial {input.adversarial:q} --model {input.model:q} \
            --settings {params.settings:q} --audit {output.audit:q} --rejected {output.rejected:q}
        """
