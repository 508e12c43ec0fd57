"""`python -m lib.data check PATH`: what is wrong with a dataset folder."""

from lib.data.dataset import main

raise SystemExit(main())
