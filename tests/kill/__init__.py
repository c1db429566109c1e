"""Training that is killed: `python -m tests.kill --help`."""
