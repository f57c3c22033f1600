# From preference pairs to a tested, quantised model file. Each rule stands in rules/, in the order the data flows;
# what it runs is the script of its own name in scripts/.

from snakemake.utils import min_version

min_version("9.0")


configfile: "config.yaml"


include: "rules/common.smk"
include: "rules/recovery.smk"
include: "rules/resources.smk"
include: "rules/storage.smk"
include: "rules/model.smk"
include: "rules/data.smk"
include: "rules/train.smk"
include: "rules/evaluate.smk"
include: "rules/export.smk"
include: "rules/fidelity.smk"
include: "rules/report.smk"


rule all:
    default_target: True
    input:
        EVERYTHING,
        "results/provenance.json",
        "results/sbom.cdx.json",


onstart:
    if workflow.is_main_process:
        adopt_results()
        withdraw_provenance()
