rule train_dpo:
    input:
        code("train_dpo"),
        train="results/data/train.jsonl",
        model="results/base/model",
    output:
        adapter=directory("results/{run}/adapter"),
        training="results/{run}/training.jsonl",
    log:
        "logs/train_dpo/{run}.log",
    benchmark:
        "benchmarks/train_dpo/{run}.tsv"
    conda:
        "../envs/dpo.yaml"
    threads: workflow.cores
    params:
        settings=lambda wildcards: as_setting(training_settings(wildcards.run)),
        # Not an output: Snakemake deletes the outputs of a failed job, and these are what it resumes from.
        checkpoints=lambda wildcards: f"results/{wildcards.run}/checkpoints",
    shell:
        """
        exec &> >(tee {log:q})
        python scripts/train_dpo.py --train {input.train:q} --model {input.model:q} --settings {params.settings:q} \
            --checkpoints {params.checkpoints:q} --adapter {output.adapter:q} --log {output.training:q}
        """
