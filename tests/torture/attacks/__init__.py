"""Attacks on the real programs, by whoever made the model, the data, the judge or the files that they are given."""

from torture.attacks import data, ggufs, judges, modelfiles, models, names, templates, texts, workflow  # noqa: F401
from torture.attacks.canary import ATTACKS  # noqa: F401
