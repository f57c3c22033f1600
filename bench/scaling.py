"""Print what larger data, larger models and more GPUs cost, from what was measured and by the formulas below.

    PYTHONPATH=scripts python bench/scaling.py

Nothing is run. A training is counted as one pass over the pairs, 8 a step; the second table is of a sweep.
"""

from types import SimpleNamespace

from dpo.shared_prompt import Pair, needed_operations

# Measured: two cores of an AMD EPYC in a whole training, see docs/training.md.
CPU_SPEED = 273e9  # operations a second
# Assumed, not measured: a third of an H100's 989e12 (bfloat16, dense), and its links.
GPU_SPEED, GPU_LINK = 330e12, 100e9  # operations, bytes a second
GPU_MEMORY = 80e9
GPUS_A_MACHINE = 8  # one training stays on one machine
PAIRS_A_STEP = 8
SWEEP, SWEEP_PAIRS = 64, 10_000  # runs, pairs of each
PAIR = Pair([0] * 40, [0] * 134, [0] * 134)  # tokens as in the default data: 308 a pair
TOKENS_AT_ONCE = 2 * 2 * 512

MODELS = {
    "SmolLM2-135M": (576, 30, 9, 3, 1536, 49152),
    "SmolLM2-360M": (960, 32, 15, 5, 2560, 49152),
    "SmolLM2-1.7B": (2048, 24, 32, 32, 8192, 49152),
    "Llama-2-7B": (4096, 32, 32, 32, 11008, 32000),
}


def model(hidden, layers, heads, key_heads, inner, vocabulary):
    """Return a model's shape as transformers names it."""
    return SimpleNamespace(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=key_heads,
        intermediate_size=inner, vocab_size=vocabulary, head_dim=hidden // heads,
    )  # fmt: skip


def weights(m) -> tuple[int, int]:
    """Return the parameters of a model with tied embeddings, and of its adapter of rank 16."""
    kv = m.num_key_value_heads * m.head_dim
    shapes = (
        [(m.hidden_size, m.hidden_size)] * 2 + [(m.hidden_size, kv)] * 2 + [(m.hidden_size, m.intermediate_size)] * 3
    )
    frozen = m.num_hidden_layers * sum(a * b for a, b in shapes) + m.vocab_size * m.hidden_size
    return frozen, m.num_hidden_layers * sum(16 * (a + b) for a, b in shapes)


def training_seconds(m, pairs: int, gpus: int) -> float:
    """Return the time of one pass over pairs, on two CPU cores where `gpus` is 0.

    Each step ends with the adapter's float32 gradients added up, by a ring: 2 (n - 1) / n times their bytes a process.
    """
    operations = needed_operations(m, [PAIR]) * pairs
    if not gpus:
        return operations / CPU_SPEED
    n = min(gpus, GPUS_A_MACHINE, PAIRS_A_STEP)
    exchanged = 4 * weights(m)[1] * 2 * (n - 1) / n
    return operations / (n * GPU_SPEED) + pairs / PAIRS_A_STEP * exchanged / GPU_LINK


def sweep_seconds(m, gpus: int) -> float:
    """Return the time of the trainings of a sweep, each on one GPU, as many at a time as there are."""
    return SWEEP / min(gpus, SWEEP) * training_seconds(m, SWEEP_PAIRS, 1)


def memory(m, checkpointing: bool = False) -> float:
    """Return the bytes of a training: frozen weights, adapter with gradient and moments, activations of one pass.

    Python, PyTorch and transformers take 0.6 GB more on a CPU.
    """
    frozen, adapter = weights(m)
    kept = 2 if checkpointing else 34
    return 2 * frozen + 16 * adapter + kept * m.hidden_size * m.num_hidden_layers * TOKENS_AT_ONCE


def storage(m) -> float:
    """Return the bytes that a run leaves: adapter, merged model, f16 and q4_k_m (6.2 bits a weight, as measured)."""
    frozen, adapter = weights(m)
    return 4 * adapter + 2 * frozen + 2 * frozen + 6.2 / 8 * frozen


def transfers(m) -> float:
    """Return the bytes that a run's jobs read and write where each brings its inputs from a bucket.

    Base model: train, generate, score_preferences, merge, measure_fidelity. Merged: convert, score_gguf twice,
    measure_fidelity. f16: quantize, score_gguf twice; q4_k_m: score_gguf.
    """
    frozen, _ = weights(m)
    return (5 + 4 + 3) * 2 * frozen + 6.2 / 8 * frozen + storage(m)


def spell(seconds: float) -> str:
    """Return a time as people say it."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def main() -> None:
    print("| model | pairs | 2 CPU cores | 1 GPU | 8 GPUs | training's memory | a run's files | from a bucket |")
    print("|---|---|---|---|---|---|---|---|")
    for name, shape in MODELS.items():
        m = model(*shape)
        for pairs in (480, 10_000, 100_000):
            times = [spell(training_seconds(m, pairs, gpus)) for gpus in (0, 1, 8)]
            rest = [f"{size / 1e9:.1f} GB" for size in (memory(m), storage(m), transfers(m))]
            print(f"| {' | '.join([name, f'{pairs:,}', *times, *rest])} |")
    print(f"\n| {SWEEP} runs of {SWEEP_PAIRS:,} pairs | 1 GPU | 8 GPUs | 64 GPUs | files | from a bucket |")
    print("|---|---|---|---|---|---|")
    for name, shape in MODELS.items():
        m = model(*shape)
        times = [spell(sweep_seconds(m, gpus)) for gpus in (1, 8, 64)]
        sizes = [f"{SWEEP * size / 1e12:.2f} TB" for size in (storage(m), transfers(m))]
        print(f"| {' | '.join([name, *times, *sizes])} |")
    print()
    for name, shape in MODELS.items():
        needed = [memory(model(*shape), checkpointing) / 1e9 for checkpointing in (False, True)]
        print(f"{name}: {needed[0]:.0f} GB, with checkpointing {needed[1]:.0f} GB, of {GPU_MEMORY / 1e9:.0f}")


if __name__ == "__main__":
    main()
