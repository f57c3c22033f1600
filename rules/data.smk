SOURCES = {"train": config["data"]["preferences"], "heldout": config["data"]["heldout"]}


rule audit_dataset:
    input:
        code("audit_dataset"),
        preferences=SOURCES["train"],
        heldout=SOURCES["heldout"],
        prompts=config["data"]["prompts"],
        model="results/base/model",
    output:
        "results/data/audit.json",
    log:
        "logs/audit_dataset/data.log",
    benchmark:
        "benchmarks/audit_dataset/data.tsv"
    # Before whatever else could start: a fault in the data stops the workflow before time goes into training. Not an
    # input of training, which would then run again whenever a test prompt changes.
    priority: 100
    conda:
        "../envs/dpo.yaml"
    params:
        settings=as_setting({key: config["data"][key] for key in ("max_length", "max_prompt_length")}),
    shell:
        """
        exec &> >(tee {log:q})
        python scripts/audit_dataset.py --preferences {input.preferences:q} --heldout {input.heldout:q} \
            --prompts {input.prompts:q} --model {input.model:q} --settings {params.settings:q} --audit {output:q}
        """


# One job a set, so that a changed test prompt or held-out pair does not train the model again.
rule build_dataset:
    input:
        code("build_dataset"),
        pairs=lambda wildcards: SOURCES[wildcards.set],
    output:
        "results/data/{set}.jsonl",
    log:
        "logs/build_dataset/{set}.log",
    benchmark:
        "benchmarks/build_dataset/{set}.tsv"
    conda:
        "../envs/dpo.yaml"
    shell:
        """
        exec &> >(tee {log:q})
        python scripts/build_dataset.py --pairs {input.pairs:q} --dataset {output:q}
        """
