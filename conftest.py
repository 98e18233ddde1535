"""Notebooks run here as for the book, but sliders draw few frames, and each cell runs twice."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "book" / "tools"))

from execute import ENVIRONMENT  # noqa: E402

pytest_plugins = ["again"]  # tests/support/again.py
os.environ.update(ENVIRONMENT | {"SBN_FIGURES": "ends"})
