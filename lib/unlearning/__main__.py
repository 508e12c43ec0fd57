"""`python -m lib.unlearning`: the methods as weights of terms."""

from lib.unlearning.methods import main

main()
