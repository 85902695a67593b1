"""`python -m txtrain` is the same as `txtrain`."""

import sys

from txtrain.cli import main

sys.exit(main())
