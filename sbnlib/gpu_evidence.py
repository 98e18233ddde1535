"""``python -m sbnlib.gpu_evidence``: the older name of :mod:`sbnlib.experiments.gpu`."""

import sys

from sbnlib.experiments.gpu import main

if __name__ == "__main__":
    sys.exit(main())
