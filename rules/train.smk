# Before training, and the same for every run: the base model's own view of the pairs.
rule compute_reference_logps:
    input:
        manifests("fetch_model/base", "build_dataset/train"),
        train="results/data/train.jsonl",
        model="results/base/model",
    output:
        logps="results/base/reference_logps/{precision}.jsonl",
        manifest="results/manifests/compute_reference_logps/{precision}.json",
    log:
        "logs/compute_reference_logps/{precision}.log",
    benchmark:
        "benchmarks/compute_reference_logps/{precision}.tsv"
    conda:
        "../envs/dpo.yaml"
    threads: all_cores
    resources:
        **resources_of("compute_reference_logps"),
    params:
        code=code_digest("compute_reference_logps"),
        settings=lambda wildcards: as_setting(reference_settings(wildcards.precision)),
    shell:
        """
        exec &> >(tee {log:q})
        exec python scripts/run_stage.py --rule compute_reference_logps --inputs {input:q} --outputs {output:q} -- \
            python scripts/compute_reference_logps.py --train {input.train:q} --model {input.model:q} \
            --settings {params.settings:q} --logps {output.logps:q}
        """


rule train_dpo:
    input:
        manifests("fetch_model/base", "build_dataset/train"),
        lambda wildcards: (
            manifests(f"compute_reference_logps/{precision_of(wildcards.run)}")
            if needs_reference(wildcards.run)
            else []
        ),
        train="results/data/train.jsonl",
        model="results/base/model",
        reference=lambda wildcards: (
            f"results/base/reference_logps/{precision_of(wildcards.run)}.jsonl"
            if needs_reference(wildcards.run)
            else []
        ),
    output:
        adapter=directory("results/{run}/adapter"),
        training="results/{run}/training.jsonl",
        manifest="results/manifests/train_dpo/{run}.json",
    log:
        "logs/train_dpo/{run}.log",
    benchmark:
        "benchmarks/train_dpo/{run}.tsv"
    conda:
        "../envs/dpo.yaml"
    threads: all_cores
    resources:
        **resources_of("train_dpo"),
    params:
        code=code_digest("train_dpo"),
        settings=lambda wildcards: as_setting(training_settings(wildcards.run)),
        reference=lambda wildcards, input: f"--reference {input.reference}" if input.reference else "",
        # Not an output: Snakemake deletes the outputs of a failed job, and these are what it resumes from.
        checkpoints=lambda wildcards: f"results/{wildcards.run}/checkpoints",
    shell:
        """
        exec &> >(tee {log:q})
        exec python scripts/run_stage.py --rule train_dpo --inputs {input:q} --outputs {output:q} -- \
            python scripts/train_dpo.py --train {input.train:q} --model {input.model:q} {params.reference} \
            --settings {params.settings:q} --checkpoints {params.checkpoints:q} \
            --adapter {output.adapter:q} --log {output.training:q}
        """
