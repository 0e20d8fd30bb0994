"""State that survives anything, proved: faults on purpose, then every record against a replay."""
