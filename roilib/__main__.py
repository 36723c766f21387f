"""`python -m roilib …` is the `roilib` command."""

import sys

from roilib.cli import main

sys.exit(main())
