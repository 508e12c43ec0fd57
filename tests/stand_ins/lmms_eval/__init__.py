"""A stand-in for lmms-eval that takes its options and writes files in its documented form."""
