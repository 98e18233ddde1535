"""Experiments that write measurement files: run one as ``python -m sbnlib.experiments.NAME``."""
