"""Check drawn cases on the backends of this machine; print the first ones that fail as programs, made small."""

from __future__ import annotations

import argparse
import sys
import time

import torch

from tests.fuzz.cases import DTYPES, Case, draw_case
from tests.fuzz.check import available_backends, check, serves
from tests.fuzz.shrink import shrink, snippet

#: Failing cases that are made small and printed; of the others the seed alone.
SHOWN = 3
SECONDS_BETWEEN_LINES = 15


def main() -> int:
    runnable = available_backends()
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, help="the first case's (default: the clock's)")
    parser.add_argument("--backends", nargs="+", choices=runnable, default=runnable)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--small", action="store_true", help="a few pixels a map, for Triton's interpreter")
    options = parser.parse_args()
    first = int(time.time()) % 10**9 if options.seed is None else options.seed
    torch.set_num_threads(1)
    print(f"{options.cases} cases from seed {first} on {', '.join(options.backends)}", flush=True)
    began = shown = time.monotonic()
    failed = 0
    for done in range(options.cases):
        case = draw_case(first + done, options.dtypes, small=options.small)
        for backend, problem in failures(case, [b for b in options.backends if serves(b, case)]):
            failed += 1
            print(f"seed {case.seed}, {problem}", flush=True)
            if failed <= SHOWN:
                small = shrink(case, lambda smaller, on=backend: bool(failures(smaller, [on])))
                print(f"\n{snippet(small, backend)}", flush=True)
        if time.monotonic() - shown > SECONDS_BETWEEN_LINES:
            shown = time.monotonic()
            print(f"  {done + 1} of {options.cases}, {failed} failed, {shown - began:.0f} s", flush=True)
    print(f"{options.cases - failed} passed, {failed} failed, seed {first}, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


def failures(case: Case, backends: list[str]) -> list[tuple[str, str]]:
    """(backend, what is wrong) for each backend that does not answer the case as it should."""
    found = []
    for backend in backends:
        try:
            check(case, backend)
        except Exception as error:
            found.append((backend, f"{type(error).__name__}: {error}"))
    return found


if __name__ == "__main__":
    sys.exit(main())
