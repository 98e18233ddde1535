"""Notebooks run here as they run for the book, but sliders draw a few of their frames only."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "book" / "tools"))

from execute import ENVIRONMENT  # noqa: E402

os.environ.update(ENVIRONMENT | {"SBN_FIGURES": "ends"})
