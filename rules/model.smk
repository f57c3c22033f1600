rule fetch_model:
    input:
        code("fetch_model"),
        "envs/llama-cpp-python.sha256",
        local=config["model"].get("path", []),
    output:
        model=directory("results/base/model"),
        manifest="results/base/manifest.json",
    log:
        "logs/fetch_model/base.log",
    benchmark:
        "benchmarks/fetch_model/base.tsv"
    conda:
        "../envs/dpo.yaml"
    params:
        settings=as_setting(config["model"]),
    shell:
        """
        exec &> >(tee {log:q})
        python scripts/fetch_model.py --settings {params.settings:q} \
            --model {output.model:q} --manifest {output.manifest:q}
        """
