"""``python book/tools/release``: see ``command``."""

import sys
from pathlib import Path

if not __package__:  # run as a folder: then Python looks in it, and not beside it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from release.command import main

sys.exit(main())
