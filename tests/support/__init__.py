"""Helpers of the tests: servers, emulators, attackers and toy models."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
"""Folder of real data, which is missing on some machines."""
