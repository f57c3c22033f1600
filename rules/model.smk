rule fetch_model:
    input:
        own_file("envs/llama-cpp-python.sha256"),
        local=large_file(config["model"]["path"]) if "path" in config["model"] else [],
    output:
        model=directory("results/base/model"),
        source="results/base/manifest.json",
        manifest="results/manifests/fetch_model/base.json",
    log:
        "logs/fetch_model/base.log",
    benchmark:
        "benchmarks/fetch_model/base.tsv"
    conda:
        "../envs/dpo.yaml"
    threads: 1
    resources:
        **resources_of("fetch_model"),
    params:
        code=code_digest("fetch_model"),
        settings=as_setting(config["model"]),
    shell:
        """
        exec &> >(tee {log:q})
        exec python scripts/run_stage.py --rule fetch_model --inputs {input:q} --outputs {output:q} -- \
            python scripts/fetch_model.py --settings {params.settings:q} \
            --model {output.model:q} --manifest {output.source:q}
        """
