"""SafeEraser's format: records, check, report, export, what may be shown."""
