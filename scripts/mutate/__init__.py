"""The parts of scripts/mutation_run.py."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
