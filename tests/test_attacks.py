"""Strangers' models, data, judges and files: no payload runs, nothing is written or read elsewhere, nothing leaks."""

import pytest

from torture.attacks import ATTACKS
from torture.outcome import SILENT


@pytest.mark.parametrize("fault", ATTACKS)
def test_an_attack_does_no_harm(fault, small_model, tmp_path):
    tried = ATTACKS[fault](tmp_path, small_model)
    print(tried)
    assert tried.outcome != SILENT, tried.detail
