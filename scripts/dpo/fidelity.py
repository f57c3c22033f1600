"""The ladder from the trained adapter down to each file that ships: what of the training is left at every rung.

What training taught is its margin: how much more probable than before a rung makes the better answers of the held-out
pairs than the worse ones, DPO's reward margin (Rafailov et al. 2023, arXiv 2305.18290, section 5.2). At each rung it is
taken against the base model at the same rung, which has gone through the same conversion and the same quantisation:
then what is measured is the training and not the noise that both have. Against the base model in float32 it says what
the file does to somebody who comes from the original model.
"""

from dpo import statistics
from dpo.preferences import reward_margins


def build_ladder(rungs: list[dict], reference: list[dict], beta: float) -> list[dict]:
    """Return the rungs with their margins, what is left of the first one's, and what each step did.

    Args:
        rungs: the first is the adapter in float32. Each has `name`, `above` (the rung that it is made from and compared
            with, None for the first), `pairs` and `base_pairs` (rows of `preferences.pair_rows`, of the run and of the
            base model at this rung), and whatever else is known of it, which is kept.
        reference: the same rows of the base model in float32.
        beta: of the training.

    Returns:
        For each rung `margin`, `margin_from_float32`: means with intervals, in units of the reward; `kept`,
        `kept_from_float32`: their ratio to the adapter's margin, with intervals; `step`: this margin less that of the
        rung above, over the pairs, and `step_kept`: the same as a share of the adapter's margin. Shares are None where
        the adapter's own margin cannot be told from zero.
    """
    margins = {rung["name"]: reward_margins(rung["pairs"], rung["base_pairs"], beta) for rung in rungs}
    first = margins[rungs[0]["name"]]
    taught = statistics.mean(first)["low"] > 0
    ladder = []
    for rung in rungs:
        ours, from_float32 = margins[rung["name"]], reward_margins(rung["pairs"], reference, beta)
        row = {key: value for key, value in rung.items() if key not in ("pairs", "base_pairs")}
        row["margin"], row["margin_from_float32"] = statistics.mean(ours), statistics.mean(from_float32)
        row["kept"] = statistics.ratio(ours, first) if taught else None
        row["kept_from_float32"] = statistics.ratio(from_float32, first) if taught else None
        row["step"] = row["step_kept"] = None
        if rung["above"]:
            step = [below - above for below, above in zip(ours, margins[rung["above"]], strict=True)]
            row["step"] = statistics.mean(step)
            row["step_kept"] = statistics.ratio(step, first) if taught else None
        ladder.append(row)
    return ladder


def check_gates(ladder: list[dict], limits: dict, quantized: list[str]) -> list[dict]:
    """Hold the ladder against the limits that the user set.

    Args:
        ladder: as `build_ladder` returns it.
        limits: `merged_kept` and `quantized_kept`, least shares of the adapter's margin; `merged_kl`, the largest mean
            KL(adapter || merged) in nats.
        quantized: names of the quantised rungs.

    Returns:
        A row for each gate: `rung`, `what` is measured, `value` and `limit`, `met` (None where the adapter has no
        margin to lose), and the likely `cause` of a failure.
    """
    rungs = {rung["name"]: rung for rung in ladder}
    rounding = (
        "storing the merged weights in float16 rounds the adapter's updates away, which are small against the weights "
        "(few steps, a low learning_rate, a small r); or the adapter was trained on another base model"
    )
    gates = [margin_gate(rungs["merged"], limits["merged_kept"], rounding)]
    merged_kl = rungs["merged"]["neutral"]["kl"]["mean"]
    gates.append(
        {
            "rung": "merged",
            "what": "mean KL divergence from the adapter in float32",
            "value": merged_kl,
            "limit": limits["merged_kl"],
            "met": merged_kl <= limits["merged_kl"],
            "cause": rounding,
        }
    )
    for name in quantized:
        cause = (
            f"{rungs[name]['file']['bits_per_weight']:.2f} bits a weight, in the tensor types that llama.cpp chose, "
            "hold too little; put another type into export.types (q6_k, q8_0), or set export.imatrix: true"
        )
        gates.append(margin_gate(rungs[name], limits["quantized_kept"], cause))
    for rung in ladder:
        found = rung["token_ids"]
        gates.append(
            {
                "rung": rung["name"],
                "what": "prompts with the token ids of the model that it was made from",
                "value": found["equal"],
                "limit": found["prompts"],
                "met": found["equal"] == found["prompts"],
                "cause": "its tokenizer splits text otherwise than the one that training used: tokens were added or "
                "changed, or llama.cpp does not know the pre-tokenizer (metadata tokenizer.ggml.pre)",
            }
        )
    return gates


def margin_gate(rung: dict, limit: float, cause: str) -> dict:
    """Return the gate on the share of the adapter's margin that a rung keeps."""
    value = rung["kept"] and rung["kept"]["value"]
    return {
        "rung": rung["name"],
        "what": "share of the adapter's margin kept",
        "value": value,
        "limit": limit,
        "met": None if value is None else value >= limit,
        "cause": cause,
    }
