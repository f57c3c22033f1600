rule merge_adapter:
    input:
        manifests("fetch_model/base", "train_dpo/{run}"),
        model="results/base/model",
        adapter="results/{run}/adapter",
    output:
        merged=directory("results/{run}/merged"),
        manifest="results/manifests/merge_adapter/{run}.json",
    log:
        "logs/merge_adapter/{run}.log",
    benchmark:
        "benchmarks/merge_adapter/{run}.tsv"
    group:
        "export"
    conda:
        "../envs/dpo.yaml"
    threads: 1
    resources:
        **resources_of("merge_adapter"),
    params:
        code=code_digest("merge_adapter"),
    shell:
        """
        exec &> >(tee {log:q})
        exec python scripts/run_stage.py --rule merge_adapter --inputs {input:q} --outputs {output:q} -- \
            python scripts/merge_adapter.py --model {input.model:q} --adapter {input.adapter:q} --merged {output.merged:q}
        """


# The base model is converted and quantised too: what a run's file keeps is measured against the base's of the same type.
rule convert_to_gguf:
    input:
        lambda wildcards: manifests(base_or("merge_adapter", wildcards.variant)),
        own_file("envs/llama-cpp-python.sha256"),
        model=model_of,
    output:
        gguf="results/{variant}/gguf/model-f16.gguf",
        manifest="results/manifests/convert_to_gguf/{variant}.json",
    log:
        "logs/convert_to_gguf/{variant}.log",
    benchmark:
        "benchmarks/convert_to_gguf/{variant}.tsv"
    group:
        "export"
    conda:
        "../envs/dpo.yaml"
    threads: 1
    resources:
        **resources_of("convert_to_gguf"),
    params:
        code=code_digest("convert_to_gguf"),
    shell:
        """
        exec &> >(tee {log:q})
        exec python scripts/run_stage.py --rule convert_to_gguf --inputs {input:q} --outputs {output:q} -- \
            python scripts/convert_to_gguf.py --model {input.model:q} --gguf {output.gguf:q}
        """


rule compute_imatrix:
    input:
        manifests("convert_to_gguf/{variant}", "build_dataset/train"),
        lambda wildcards: manifests(base_or("merge_adapter", wildcards.variant)),
        own_file("envs/llama-cpp-python.sha256"),
        gguf="results/{variant}/gguf/model-f16.gguf",
        model=model_of,
        train="results/data/train.jsonl",
    output:
        imatrix="results/{variant}/gguf/imatrix.gguf",
        manifest="results/manifests/compute_imatrix/{variant}.json",
    log:
        "logs/compute_imatrix/{variant}.log",
    benchmark:
        "benchmarks/compute_imatrix/{variant}.tsv"
    group:
        "export"
    conda:
        "../envs/dpo.yaml"
    threads: all_cores
    resources:
        **resources_of("compute_imatrix"),
    params:
        code=code_digest("compute_imatrix"),
    shell:
        """
        exec &> >(tee {log:q})
        exec python scripts/run_stage.py --rule compute_imatrix --inputs {input:q} --outputs {output:q} -- \
            python scripts/compute_imatrix.py --gguf {input.gguf:q} --model {input.model:q} --train {input.train:q} \
            --imatrix {output.imatrix:q}
        """


rule quantize_gguf:
    input:
        manifests("convert_to_gguf/{variant}"),
        manifests("compute_imatrix/{variant}") if config["export"]["imatrix"] else [],
        gguf="results/{variant}/gguf/model-f16.gguf",
        imatrix="results/{variant}/gguf/imatrix.gguf" if config["export"]["imatrix"] else [],
    output:
        quantized="results/{variant}/gguf/model-{quantized}.gguf",
        manifest="results/manifests/quantize_gguf/{variant}/{quantized}.json",
    log:
        "logs/quantize_gguf/{variant}/{quantized}.log",
    benchmark:
        "benchmarks/quantize_gguf/{variant}/{quantized}.tsv"
    group:
        "export"
    conda:
        "../envs/dpo.yaml"
    threads: all_cores
    resources:
        **resources_of("quantize_gguf"),
    params:
        code=code_digest("quantize_gguf"),
        imatrix=lambda wildcards, input: f"--imatrix {input.imatrix}" if input.imatrix else "",
    shell:
        """
        exec &> >(tee {log:q})
        exec python scripts/run_stage.py --rule quantize_gguf --inputs {input:q} --outputs {output:q} -- \
            python scripts/quantize_gguf.py --gguf {input.gguf:q} --type {wildcards.quantized} {params.imatrix} \
            --quantized {output.quantized:q}
        """


rule smoke_test_gguf:
    input:
        manifests(f"quantize_gguf/{{run}}/{SHIPPED}", "convert_to_gguf/{run}", "merge_adapter/{run}"),
        gguf=f"results/{{run}}/gguf/model-{SHIPPED}.gguf",
        f16="results/{run}/gguf/model-f16.gguf",
        merged="results/{run}/merged",
        prompts=TEST_FILES["prompts"],
    output:
        modelfile="results/{run}/gguf/Modelfile",
        report="results/{run}/smoke_test.json",
        manifest="results/manifests/smoke_test_gguf/{run}.json",
    log:
        "logs/smoke_test_gguf/{run}.log",
    benchmark:
        "benchmarks/smoke_test_gguf/{run}.tsv"
    conda:
        "../envs/dpo.yaml"
    threads: all_cores
    resources:
        **resources_of("smoke_test_gguf"),
    params:
        code=code_digest("smoke_test_gguf"),
        settings=as_setting({"type": SHIPPED, "max_new_tokens": config["export"]["max_new_tokens"]}),
    shell:
        """
        exec &> >(tee {log:q})
        exec python scripts/run_stage.py --rule smoke_test_gguf --inputs {input:q} --outputs {output:q} -- \
            python scripts/smoke_test_gguf.py --gguf {input.gguf:q} --f16 {input.f16:q} --merged {input.merged:q} \
            --prompts {input.prompts:q} --settings {params.settings:q} \
            --modelfile {output.modelfile:q} --report {output.report:q}
        """
