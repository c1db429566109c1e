"""The benchmark suite: workloads, providers, one harness for time and memory, rows, tables and plots.

It is part of the package so that ``l2t-fast bench`` works wherever l2t_fast is installed. ``benchmarks/`` in the
sources holds the recorded rows, the same under pytest-benchmark, and scripts around them.
"""
