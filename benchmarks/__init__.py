"""Measures kerntuned beside TuneD and beside what the bus itself costs, all in one run: `python -m benchmarks.run`."""
