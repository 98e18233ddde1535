"""Experiments that write measurement files: run one as ``python -m sbnlib.experiments.NAME``.

``subset`` alone is none: it makes the file of a data set.
"""
