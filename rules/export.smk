rule merge_adapter:
    input:
        code("merge_adapter"),
        model="results/base/model",
        adapter="results/{run}/adapter",
    output:
        directory("results/{run}/merged"),
    log:
        "logs/merge_adapter/{run}.log",
    benchmark:
        "benchmarks/merge_adapter/{run}.tsv"
    conda:
        "../envs/dpo.yaml"
    shell:
        """
        exec &> >(tee {log:q})
        python scripts/merge_adapter.py --model {input.model:q} --adapter {input.adapter:q} --merged {output:q}
        """


rule convert_to_gguf:
    input:
        code("convert_to_gguf"),
        "envs/llama-cpp-python.sha256",
        model="results/{run}/merged",
    output:
        "results/{run}/gguf/model-f16.gguf",
    log:
        "logs/convert_to_gguf/{run}.log",
    benchmark:
        "benchmarks/convert_to_gguf/{run}.tsv"
    conda:
        "../envs/dpo.yaml"
    shell:
        """
        exec &> >(tee {log:q})
        python scripts/convert_to_gguf.py --model {input.model:q} --gguf {output:q}
        """


rule quantize_gguf:
    input:
        code("quantize_gguf"),
        gguf="results/{run}/gguf/model-f16.gguf",
    output:
        "results/{run}/gguf/model-q4_k_m.gguf",
    log:
        "logs/quantize_gguf/{run}.log",
    benchmark:
        "benchmarks/quantize_gguf/{run}.tsv"
    conda:
        "../envs/dpo.yaml"
    threads: workflow.cores
    shell:
        """
        exec &> >(tee {log:q})
        python scripts/quantize_gguf.py --gguf {input.gguf:q} --type q4_k_m --quantized {output:q}
        """


rule smoke_test_gguf:
    input:
        code("smoke_test_gguf"),
        gguf="results/{run}/gguf/model-q4_k_m.gguf",
        f16="results/{run}/gguf/model-f16.gguf",
        merged="results/{run}/merged",
        prompts=config["data"]["prompts"],
    output:
        modelfile="results/{run}/gguf/Modelfile",
        report="results/{run}/smoke_test.json",
    log:
        "logs/smoke_test_gguf/{run}.log",
    benchmark:
        "benchmarks/smoke_test_gguf/{run}.tsv"
    conda:
        "../envs/dpo.yaml"
    threads: workflow.cores
    params:
        settings=as_setting(config["export"]),
    shell:
        """
        exec &> >(tee {log:q})
        python scripts/smoke_test_gguf.py --gguf {input.gguf:q} --f16 {input.f16:q} --merged {input.merged:q} \
            --prompts {input.prompts:q} --settings {params.settings:q} \
            --modelfile {output.modelfile:q} --report {output.report:q}
        """


rule score_gguf:
    input:
        code("score_gguf"),
        gguf="results/{run}/gguf/model-q4_k_m.gguf",
        merged="results/{run}/merged",
        heldout="results/data/heldout.jsonl",
        reference="results/base/preferences.json",
    output:
        "results/{run}/gguf_preferences.json",
    log:
        "logs/score_gguf/{run}.log",
    benchmark:
        "benchmarks/score_gguf/{run}.tsv"
    conda:
        "../envs/dpo.yaml"
    threads: workflow.cores
    params:
        settings=lambda wildcards: as_setting(preference_settings(wildcards.run)),
    shell:
        """
        exec &> >(tee {log:q})
        python scripts/score_gguf.py --gguf {input.gguf:q} --merged {input.merged:q} --heldout {input.heldout:q} \
            --reference {input.reference:q} --settings {params.settings:q} --preferences {output:q}
        """
