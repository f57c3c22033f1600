# What each rule's job asks for where a cluster shares out cores, memory, time and GPUs; no rules here.

# Measured with the default config on two cores, see docs/scaling.md: seconds, and the peak of memory in MB. What holds a
# model takes as much more of both as the model's weights are larger than SmolLM2-135M's.
MEASURED = {
    "fetch_dataset": (60, 1000),
    "fetch_model": (20, 2000),
    "build_dataset": (20, 600),
    "audit_dataset": (10, 300),
    "compute_reference_logps": (60, 3000),
    "train_dpo": (300, 3200),
    "generate_responses": (90, 2000),
    "score_responses": (10, 300),
    "score_preferences": (90, 2000),
    "check_judge": (60, 1000),
    "judge_responses": (60, 1000),
    "merge_adapter": (20, 2000),
    "convert_to_gguf": (20, 1000),
    "compute_imatrix": (60, 1000),
    "quantize_gguf": (10, 1000),
    "smoke_test_gguf": (30, 1000),
    "score_gguf": (60, 1500),
    "measure_fidelity": (120, 3000),
    "check_fidelity": (5, 100),
    "summarize_run": (5, 300),
    "summarize": (10, 300),
    "render_report": (10, 300),
    "render_model_card": (5, 200),
    "record_provenance": (10, 300),
}
WITHOUT_MODEL = {
    "fetch_dataset", "build_dataset", "audit_dataset", "score_responses", "check_fidelity", "summarize_run",
    "summarize", "render_report", "render_model_card", "record_provenance",
}  # fmt: skip
ON_GPU = {"compute_reference_logps", "train_dpo", "generate_responses", "score_preferences", "measure_fidelity"}
MB_WITHOUT_MODEL = 600  # of a job that holds one: Python with PyTorch and transformers
MEMORY_MARGIN, TIME_MARGIN, LEAST_MINUTES = 1.5, 5, 10
MEASURED_WEIGHTS = 269e6  # bytes, SmolLM2-135M in 16 bits
MEASURED_PAIRS = 60 * 8  # that training computed


def model_size():
    """How many times as large as those measured the base model's weights are; once they are here, else 1."""
    folder = Path(config["model"].get("path", "results/base/model"))
    return max(1, sum(file.stat().st_size for file in folder.glob("*.safetensors")) / MEASURED_WEIGHTS)


MODEL_SIZE = model_size()


def all_cores(wildcards):
    """All cores that Snakemake was given; of a cluster, as many as config says, wherever the job lands."""
    if workflow.local_exec and not workflow.remote_exec:
        return workflow.cores
    return config["resources"]["threads"]


def work_of(rule, wildcards):
    """How many times as much there is to do as was measured, besides the model's size."""
    if rule == "train_dpo":
        settings = run_settings(wildcards.run)
        pairs = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
        return settings["max_steps"] * pairs / MEASURED_PAIRS
    if rule in ("summarize", "record_provenance"):
        return len(TRAINED)
    return 1


def resources_of(rule):
    """Memory (MB) and time (minutes) of a rule's job, with margins and more at each further attempt, and its GPUs."""
    seconds, megabytes = MEASURED[rule]
    size = 1 if rule in WITHOUT_MODEL else MODEL_SIZE
    needed = megabytes + max(0, megabytes - MB_WITHOUT_MODEL) * (size - 1)

    def mem_mb(wildcards, attempt):
        return math.ceil(MEMORY_MARGIN * needed * attempt)

    def runtime(wildcards, attempt):
        minutes = TIME_MARGIN * seconds * size * max(1, work_of(rule, wildcards)) / 60
        return math.ceil(max(LEAST_MINUTES, minutes) * attempt)

    def gpu(wildcards):
        if rule not in ON_GPU or not config["resources"]["gpu"]:
            return 0
        return run_settings(wildcards.run)["processes"] if rule == "train_dpo" else 1

    return {"mem_mb": mem_mb, "runtime": runtime, "gpu": gpu}
