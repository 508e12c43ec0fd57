"""`python -m lib.costs`, of which `--explain` prints everything that is assumed."""

import sys

from lib.costs.estimate import main

if __name__ == "__main__":
    sys.exit(main())
