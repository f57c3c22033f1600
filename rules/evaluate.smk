rule generate_responses:
    input:
        manifests("fetch_model/base"),
        lambda wildcards: manifests(base_or("train_dpo", wildcards.variant)),
        **TEST_FILES,
        model="results/base/model",
        adapter=adapter_of,
    output:
        generations="results/{variant}/generations.jsonl",
        manifest="results/manifests/generate_responses/{variant}.json",
    log:
        "logs/generate_responses/{variant}.log",
    benchmark:
        "benchmarks/generate_responses/{variant}.tsv"
    conda:
        "../envs/dpo.yaml"
    threads: all_cores
    resources:
        **resources_of("generate_responses"),
    params:
        code=code_digest("generate_responses"),
        adapter=lambda wildcards, input: f"--adapter {input.adapter}" if input.adapter else "",
        settings=as_setting(config["generation"]),
    shell:
        """
        exec &> >(tee {log:q})
        exec python scripts/run_stage.py --rule generate_responses --inputs {input:q} --outputs {output:q} -- \
            python scripts/generate_responses.py --model {input.model:q} {params.adapter} --prompts {input.prompts:q} \
            --instructions {input.instructions:q} --adversarial {input.adversarial:q} --settings {params.settings:q} \
            --generations {output.generations:q}
        """


rule score_responses:
    input:
        manifests("generate_responses/{variant}"),
        **TEST_FILES,
        generations="results/{variant}/generations.jsonl",
    output:
        scores="results/{variant}/scores.json",
        manifest="results/manifests/score_responses/{variant}.json",
    log:
        "logs/score_responses/{variant}.log",
    benchmark:
        "benchmarks/score_responses/{variant}.tsv"
    conda:
        "../envs/dpo.yaml"
    threads: 1
    resources:
        **resources_of("score_responses"),
    params:
        code=code_digest("score_responses"),
    shell:
        """
        exec &> >(tee {log:q})
        exec python scripts/run_stage.py --rule score_responses --inputs {input:q} --outputs {output:q} -- \
            python scripts/score_responses.py --prompts {input.prompts:q} --instructions {input.instructions:q} \
            --adversarial {input.adversarial:q} --generations {input.generations:q} --scores {output.scores:q}
        """


rule score_preferences:
    input:
        manifests("fetch_model/base", "build_dataset/train", "build_dataset/heldout"),
        lambda wildcards: (
            []
            if wildcards.variant == "base"
            else manifests(f"train_dpo/{wildcards.variant}", "score_preferences/base")
        ),
        model="results/base/model",
        adapter=adapter_of,
        reference=lambda wildcards: [] if wildcards.variant == "base" else "results/base/preferences.json",
        train="results/data/train.jsonl",
        heldout="results/data/heldout.jsonl",
        neutral=own_file(DATA["neutral"]),
    output:
        preferences="results/{variant}/preferences.json",
        manifest="results/manifests/score_preferences/{variant}.json",
    log:
        "logs/score_preferences/{variant}.log",
    benchmark:
        "benchmarks/score_preferences/{variant}.tsv"
    conda:
        "../envs/dpo.yaml"
    threads: all_cores
    resources:
        **resources_of("score_preferences"),
    params:
        code=code_digest("score_preferences"),
        adapter=lambda wildcards, input: (
            f"--adapter {input.adapter} --reference {input.reference}" if input.adapter else ""
        ),
        settings=lambda wildcards: as_setting(preference_settings(wildcards.variant)),
    shell:
        """
        exec &> >(tee {log:q})
        exec python scripts/run_stage.py --rule score_preferences --inputs {input:q} --outputs {output:q} -- \
            python scripts/score_preferences.py --model {input.model:q} {params.adapter} --train {input.train:q} \
            --heldout {input.heldout:q} --neutral {input.neutral:q} --settings {params.settings:q} \
            --preferences {output.preferences:q}
        """


# A judge's journal is no output, since Snakemake would delete it: it keeps what was answered from being asked again.
rule check_judge:
    input:
        manifests("build_dataset/heldout"),
        lambda wildcards: judge_file(wildcards.judge),
        pairs="results/data/heldout.jsonl",
    output:
        check="results/judges/{judge}.json",
        manifest="results/manifests/check_judge/{judge}.json",
    log:
        "logs/check_judge/{judge}.log",
    benchmark:
        "benchmarks/check_judge/{judge}.tsv"
    conda:
        "../envs/dpo.yaml"
    threads: lambda wildcards: all_cores(wildcards) if "gguf" in JUDGES[wildcards.judge] else 1
    resources:
        **resources_of("check_judge"),
    params:
        code=code_digest("check_judge"),
        journal="results/judges/{judge}.journal.jsonl",
        max_pairs=config["evaluation"]["max_pairs"],
        settings=lambda wildcards: as_setting(JUDGES[wildcards.judge]),
    shell:
        """
        exec &> >(tee {log:q})
        exec python scripts/run_stage.py --rule check_judge --inputs {input:q} --outputs {output:q} -- \
            python scripts/check_judge.py --settings {params.settings:q} --pairs {input.pairs:q} \
            --max-pairs {params.max_pairs} --journal {params.journal:q} --check {output.check:q}
        """


rule judge_responses:
    input:
        manifests("check_judge/{judge}", "generate_responses/base", "generate_responses/{run}"),
        lambda wildcards: judge_file(wildcards.judge),
        check="results/judges/{judge}.json",
        prompts=TEST_FILES["prompts"],
        base="results/base/generations.jsonl",
        run="results/{run}/generations.jsonl",
    output:
        judgements="results/{run}/judgements/{judge}.json",
        manifest="results/manifests/judge_responses/{run}/{judge}.json",
    log:
        "logs/judge_responses/{run}/{judge}.log",
    benchmark:
        "benchmarks/judge_responses/{run}/{judge}.tsv"
    conda:
        "../envs/dpo.yaml"
    threads: lambda wildcards: all_cores(wildcards) if "gguf" in JUDGES[wildcards.judge] else 1
    resources:
        **resources_of("judge_responses"),
    params:
        code=code_digest("judge_responses"),
        journal="results/{run}/judgements/{judge}.journal.jsonl",
        settings=lambda wildcards: as_setting(JUDGES[wildcards.judge]),
    shell:
        """
        exec &> >(tee {log:q})
        exec python scripts/run_stage.py --rule judge_responses --inputs {input:q} --outputs {output:q} -- \
            python scripts/judge_responses.py --settings {params.settings:q} --check {input.check:q} \
            --prompts {input.prompts:q} --base {input.base:q} --run {input.run:q} --journal {params.journal:q} \
            --judgements {output.judgements:q}
        """
