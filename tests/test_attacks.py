"""Strangers' models, data, judges and files: no payload runs, nothing is written or read elsewhere, nothing leaks."""

import pytest

from torture.attacks import ATTACKS
from torture.attacks.workflow import ON_WHOLE_WORKFLOW
from torture.outcome import SILENT


# test_workflow.py has the others.
@pytest.mark.parametrize("fault", [fault for fault in ATTACKS if fault not in ON_WHOLE_WORKFLOW])
def test_an_attack_does_no_harm(fault, small_model, tmp_path):
    tried = ATTACKS[fault](tmp_path, small_model)
    print(tried)
    assert tried.outcome != SILENT, tried.detail
