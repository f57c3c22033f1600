"""What a training log says, on logs of trainings that went as named."""

import pytest

from dpo import training_health


def log(**last):
    """A log of two lines, whose last one has the given values beside those of a sound training."""
    sound = {"loss": 0.45, "rewards/chosen": 0.5, "rewards/rejected": -0.3, "rewards/margins": 0.8}
    first = {"loss": 0.693, "rewards/chosen": 0.0, "rewards/rejected": 0.0, "rewards/margins": 0.0}
    return [first | {"rewards/accuracies": 0.0}, sound | {"rewards/accuracies": 0.9} | last]


CASES = {
    "sound": ({}, []),
    "pinned": ({"loss": 0.69}, ["loss pinned"]),
    "chance": ({"rewards/accuracies": 0.55}, ["accuracy at chance"]),
    "displaced": ({"rewards/chosen": -1.2}, ["chosen answers become less probable"]),
    "falling with its margin": ({"rewards/chosen": -1.2, "rewards/margins": -0.1}, []),
    "saturated": ({"rewards/margins": 2.7, "rewards/accuracies": 1.0, "loss": 0.065}, ["margin saturated"]),
    "large margin, but not for all": ({"rewards/margins": 2.7, "rewards/accuracies": 0.9}, []),
}


@pytest.mark.parametrize(("last", "names"), CASES.values(), ids=CASES)
def test_findings(last, names):
    findings = training_health.find(log(**last))
    assert [finding["name"] for finding in findings] == names
    assert all(finding["what"] and finding["advice"] for finding in findings)


def test_a_gap_beyond_both_intervals_is_memorising():
    apart = {"value": 1.0, "low": 0.9, "high": 1.0}, {"value": 0.55, "low": 0.4, "high": 0.7}
    near = {"value": 1.0, "low": 0.7, "high": 1.0}, {"value": 0.8, "low": 0.65, "high": 0.9}
    assert [finding["name"] for finding in training_health.find(log(), *apart)] == ["memorised"]
    assert training_health.find(log(), *near) == []
