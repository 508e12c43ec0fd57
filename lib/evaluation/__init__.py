"""Questions, answers, judging by rules, metrics, statistics."""
