"""What the tests stand on: servers, emulators, attackers, toy models."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
"""Real data, which not every machine has."""
