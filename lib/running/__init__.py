"""Profiles, results, plan, workers, chapters, publish, the command."""
