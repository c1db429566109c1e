"""The matching loss on drawn problems: `python -m tests.fuzz --help`, and 500 of them in the test suite."""
