rule generate_responses:
    input:
        code("generate_responses"),
        **{name: DATA[name] for name in TEST_SETS},
        model="results/base/model",
        adapter=adapter_of,
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
        python scripts/generate_responses.py --model {input.model:q} {params.adapter} --prompts {input.prompts:q} \
            --instructions {input.instructions:q} --adversarial {input.adversarial:q} --settings {params.settings:q} \
            --generations {output:q}
        """


rule score_responses:
    input:
        code("score_responses"),
        **{name: DATA[name] for name in TEST_SETS},
        generations="results/{variant}/generations.jsonl",
    output:
        "results/{variant}/scores.json",
    log:
        "logs/score_responses/{variant}.log",
    benchmark:
        "benchmarks/score_responses/{variant}.tsv"
    conda:
        "../envs/dpo.yaml"
    shell:
        """
        exec &> >(tee {log:q})
        python scripts/score_responses.py --prompts {input.prompts:q} --instructions {input.instructions:q} \
            --adversarial {input.adversarial:q} --generations {input.generations:q} --scores {output:q}
        """


rule score_preferences:
    input:
        code("score_preferences"),
        model="results/base/model",
        adapter=adapter_of,
        reference=lambda wildcards: [] if wildcards.variant == "base" else "results/base/preferences.json",
        train="results/data/train.jsonl",
        heldout="results/data/heldout.jsonl",
        neutral=DATA["neutral"],
    output:
        "results/{variant}/preferences.json",
    log:
        "logs/score_preferences/{variant}.log",
    benchmark:
        "benchmarks/score_preferences/{variant}.tsv"
    conda:
        "../envs/dpo.yaml"
    threads: workflow.cores
    params:
        adapter=lambda wildcards, input: (
            f"--adapter {input.adapter} --reference {input.reference}" if input.adapter else ""
        ),
        settings=lambda wildcards: as_setting(preference_settings(wildcards.variant)),
    shell:
        """
        exec &> >(tee {log:q})
        python scripts/score_preferences.py --model {input.model:q} {params.adapter} --train {input.train:q} \
            --heldout {input.heldout:q} --neutral {input.neutral:q} --settings {params.settings:q} \
            --preferences {output:q}
        """


# A judge's journal is no output, since Snakemake would delete it: it keeps what was answered from being asked again.
rule check_judge:
    input:
        code("check_judge"),
        lambda wildcards: JUDGES[wildcards.judge].get("gguf", []),
        pairs="results/data/heldout.jsonl",
    output:
        "results/judges/{judge}.json",
    log:
        "logs/check_judge/{judge}.log",
    benchmark:
        "benchmarks/check_judge/{judge}.tsv"
    conda:
        "../envs/dpo.yaml"
    threads: lambda wildcards: workflow.cores if "gguf" in JUDGES[wildcards.judge] else 1
    params:
        journal="results/judges/{judge}.journal.jsonl",
        max_pairs=config["evaluation"]["max_pairs"],
        settings=lambda wildcards: as_setting(JUDGES[wildcards.judge]),
    shell:
        """
        exec &> >(tee {log:q})
        python scripts/check_judge.py --settings {params.settings:q} --pairs {input.pairs:q} \
            --max-pairs {params.max_pairs} --journal {params.journal:q} --check {output:q}
        """


rule judge_responses:
    input:
        code("judge_responses"),
        lambda wildcards: JUDGES[wildcards.judge].get("gguf", []),
        check="results/judges/{judge}.json",
        prompts=DATA["prompts"],
        base="results/base/generations.jsonl",
        run="results/{run}/generations.jsonl",
    output:
        "results/{run}/judgements/{judge}.json",
    log:
        "logs/judge_responses/{run}.{judge}.log",
    benchmark:
        "benchmarks/judge_responses/{run}.{judge}.tsv"
    conda:
        "../envs/dpo.yaml"
    threads: lambda wildcards: workflow.cores if "gguf" in JUDGES[wildcards.judge] else 1
    params:
        journal="results/{run}/judgements/{judge}.journal.jsonl",
        settings=lambda wildcards: as_setting(JUDGES[wildcards.judge]),
    shell:
        """
        exec &> >(tee {log:q})
        python scripts/judge_responses.py --settings {params.settings:q} --check {input.check:q} \
            --prompts {input.prompts:q} --base {input.base:q} --run {input.run:q} --journal {params.journal:q} \
            --judgements {output:q}
        """
