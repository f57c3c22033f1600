# What each rule's job asks for where a cluster shares out cores, memory, time and GPUs; no rules here.

# Measured with the default config on one core of a machine without 16-bit products, but for estimates of what it leaves out:
# seconds, and the peak of memory in MB. What holds a model takes as much more of both as its weights are larger than SmolLM2-135M's.
MEASURED = {
    "fetch_dataset": (60, 1000),  # estimate
    "fetch_model": (43, 1250),
    "build_dataset": (9, 600),
    "audit_dataset": (21, 450),
    "compute_reference_logps": (40, 1550),
    "train_dpo": (1310, 4450),
    "generate_responses": (115, 2050),
    "score_responses": (3, 160),
    "score_preferences": (118, 2450),
    "check_judge": (600, 2000),  # estimate
    "judge_responses": (600, 2000),  # estimate
    "merge_adapter": (14, 1400),
    "convert_to_gguf": (21, 600),
    "compute_imatrix": (60, 1000),  # estimate
    "quantize_gguf": (5, 300),
    "smoke_test_gguf": (46, 750),
    "score_gguf": (92, 2250),
    "measure_fidelity": (310, 4250),
    "check_fidelity": (2, 130),
    "summarize_run": (3, 130),
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


def work_of(name, wildcards):
    """How many times as much there is to do as was measured, besides the model's size."""
    if name == "train_dpo":
        settings = run_settings(wildcards.run)
        pairs = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
        return settings["max_steps"] * pairs / MEASURED_PAIRS
    if name in ("summarize", "record_provenance"):
        return len(TRAINED)
    return 1


def resources_of(name):
    """Memory (MB) and time (minutes) of a rule's job, with margins and more at each further attempt, and its GPUs."""
    seconds, megabytes = MEASURED[name]
    size = 1 if name in WITHOUT_MODEL else MODEL_SIZE
    needed = megabytes + max(0, megabytes - MB_WITHOUT_MODEL) * (size - 1)

    def mem_mb(wildcards, attempt):
        return math.ceil(MEMORY_MARGIN * needed * attempt)

    def runtime(wildcards, attempt):
        minutes = TIME_MARGIN * seconds * size * max(1, work_of(name, wildcards)) / 60
        return math.ceil(max(LEAST_MINUTES, minutes) * attempt)

    def gpu(wildcards):
        return run_settings(wildcards.run)["processes"]

    # A number where one will do: of thousands of jobs, Snakemake calls each function anew.
    on_gpu = name in ON_GPU and config["resources"]["gpu"]
    return {"mem_mb": mem_mb, "runtime": runtime, "gpu": (gpu if name == "train_dpo" else 1) if on_gpu else 0}
