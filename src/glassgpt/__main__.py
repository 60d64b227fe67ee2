"""`python -m glassgpt` is `glassgpt`."""

import sys

from glassgpt.cli import main

sys.exit(main())
