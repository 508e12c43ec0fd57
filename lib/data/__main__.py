"""`python -m lib.data check PATH`: what is wrong with a dataset folder."""

import sys

from lib.data.dataset import main

sys.stdout.reconfigure(errors="replace")  # a terminal without ü is no reason to fail
raise SystemExit(main())
