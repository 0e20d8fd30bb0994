"""The broker, seen from both sides: `log` for workers (plain calls), `predictions` for api processes (coroutines)."""
