rule generate_responses:
    input:
        code("generate_responses"),
        model="results/base/model",
        adapter=adapter_of,
        prompts=config["data"]["prompts"],
    output:
        "results/{variant}/generations.jsonl",
    log:
        "logs/generate_responses/{variant}.log",
    benchmark:
        "benchmarks/generate_responses/{variant}.tsv"
    conda:
        "../envs/dpo.yaml"
    threads: workflow.cores
    params:
        adapter=lambda wildcards, input: f"--adapter {input.adapter}" if input.adapter else "",
        settings=as_setting(config["generation"]),
    shell:
        """
        exec &> >(tee {log:q})
        python scripts/generate_responses.py --model {input.model:q} {params.adapter} \
            --prompts {input.prompts:q} --settings {params.settings:q} --generations {output:q}
        """


rule score_responses:
    input:
        code("score_responses"),
        model="results/base/model",
        adapter=adapter_of,
        reference=lambda wildcards: [] if wildcards.variant == "base" else "results/base/scores.json",
        prompts=config["data"]["prompts"],
        generations="results/{variant}/generations.jsonl",
        heldout="results/data/heldout.jsonl",
    output:
        "results/{variant}/scores.json",
    log:
        "logs/score_responses/{variant}.log",
    benchmark:
        "benchmarks/score_responses/{variant}.tsv"
    conda:
        "../envs/dpo.yaml"
    threads: workflow.cores
    params:
        adapter=lambda wildcards, input: (
            f"--adapter {input.adapter} --reference {input.reference}" if input.adapter else ""
        ),
        settings=lambda wildcards: as_setting(
            {} if wildcards.variant == "base" else {"beta": run_settings(wildcards.variant)["beta"]}
        ),
    shell:
        """
        exec &> >(tee {log:q})
        python scripts/score_responses.py --model {input.model:q} {params.adapter} \
            --prompts {input.prompts:q} --generations {input.generations:q} --heldout {input.heldout:q} \
            --settings {params.settings:q} --scores {output:q}
        """
