rule score_gguf:
    input:
        manifests("convert_to_gguf/{variant}", "build_dataset/heldout"),
        lambda wildcards: manifests(
            base_or("merge_adapter", wildcards.variant), gguf_maker(wildcards.variant, wildcards.type)
        ),
        gguf="results/{variant}/gguf/model-{type}.gguf",
        above=made_from,
        model=model_of,
        heldout="results/data/heldout.jsonl",
        neutral=own_file(DATA["neutral"]),
        prompts=[*TEST_FILES.values()],
    output:
        scores="results/{variant}/gguf_scores/{type}.json",
        manifest="results/manifests/score_gguf/{variant}/{type}.json",
    log:
        "logs/score_gguf/{variant}/{type}.log",
    benchmark:
        "benchmarks/score_gguf/{variant}/{type}.tsv"
    conda:
        "../envs/dpo.yaml"
    threads: all_cores
    resources:
        **resources_of("score_gguf"),
    params:
        code=code_digest("score_gguf"),
        settings=as_setting({"max_pairs": config["evaluation"]["max_pairs"]}),
    shell:
        """
        exec &> >(tee {log:q})
        exec python scripts/run_stage.py --rule score_gguf --inputs {input:q} --outputs {output:q} -- \
            python scripts/score_gguf.py --gguf {input.gguf:q} --above {input.above:q} --model {input.model:q} \
            --heldout {input.heldout:q} --neutral {input.neutral:q} --prompts {input.prompts:q} \
            --settings {params.settings:q} --scores {output.scores:q}
        """


rule measure_fidelity:
    input:
        manifests(
            "fetch_model/base",
            "build_dataset/heldout",
            "score_preferences/base",
            *(f"{job}/{{run}}" for job in ("train_dpo", "merge_adapter", "score_preferences")),
            *(f"score_gguf/{variant}/{type}" for variant in ("base", "{run}") for type in ["f16", *TYPES]),
        ),
        model="results/base/model",
        adapter="results/{run}/adapter",
        merged="results/{run}/merged",
        heldout="results/data/heldout.jsonl",
        neutral=own_file(DATA["neutral"]),
        prompts=[*TEST_FILES.values()],
        reference="results/base/preferences.json",
        preferences="results/{run}/preferences.json",
        base_scores=gguf_scores("base"),
        scores=lambda wildcards: gguf_scores(wildcards.run),
    output:
        fidelity="results/{run}/fidelity.json",
        manifest="results/manifests/measure_fidelity/{run}.json",
    log:
        "logs/measure_fidelity/{run}.log",
    benchmark:
        "benchmarks/measure_fidelity/{run}.tsv"
    conda:
        "../envs/dpo.yaml"
    threads: all_cores
    resources:
        **resources_of("measure_fidelity"),
    params:
        code=code_digest("measure_fidelity"),
        settings=lambda wildcards: as_setting(
            training_settings(wildcards.run) | {"max_pairs": config["evaluation"]["max_pairs"]}
        ),
    shell:
        """
        exec &> >(tee {log:q})
        exec python scripts/run_stage.py --rule measure_fidelity --inputs {input:q} --outputs {output:q} -- \
            python scripts/measure_fidelity.py --model {input.model:q} --adapter {input.adapter:q} \
            --merged {input.merged:q} --heldout {input.heldout:q} --neutral {input.neutral:q} \
            --prompts {input.prompts:q} --reference {input.reference:q} --preferences {input.preferences:q} \
            --base-scores {input.base_scores:q} --scores {input.scores:q} --settings {params.settings:q} \
            --fidelity {output.fidelity:q}
        """


rule check_fidelity:
    input:
        manifests("measure_fidelity/{run}"),
        fidelity="results/{run}/fidelity.json",
    output:
        check="results/{run}/fidelity_check.json",
        manifest="results/manifests/check_fidelity/{run}.json",
    log:
        "logs/check_fidelity/{run}.log",
    benchmark:
        "benchmarks/check_fidelity/{run}.tsv"
    conda:
        "../envs/dpo.yaml"
    threads: 1
    resources:
        **resources_of("check_fidelity"),
    params:
        code=code_digest("check_fidelity"),
        types=TYPES,
        settings=as_setting(config["fidelity"]),
    shell:
        """
        exec &> >(tee {log:q})
        exec python scripts/run_stage.py --rule check_fidelity --inputs {input:q} --outputs {output:q} -- \
            python scripts/check_fidelity.py --fidelity {input.fidelity:q} --types {params.types} \
            --settings {params.settings:q} --check {output.check:q}
        """
