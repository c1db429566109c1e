"""Rows with made-up figures, for tests of what is made from rows."""

from l2t_fast.bench.rows import Row

_FIXED = {
    "run": "2020-01-01T00:00:00Z",
    "version": "0.1.0",
    "commit": "0123456",
    "native": "0123456",
    "device": "Some processor (2 cores)",
    "capability": "AVX2",
    "python": "3.11.7",
    "torch": "2.14.1",
    "threads": 2,
    "flags": "cold cache",
    "workload": "cifar",
    "batch": 128,
    "pairs": 15,
    "dtype": "float32",
    "layout": "NCHW",
    "mode": "forward_backward",
}


def fake_row(provider="cpu", *, median_ms=10.0, **columns) -> Row:
    """A row of 9 calls, 10 % around the median; every column can be given."""
    times = {}
    if median_ms is not None:
        times = {"repeats": 9, "median_ms": median_ms, "p20_ms": 0.9 * median_ms, "p80_ms": 1.1 * median_ms}
    return Row(**(_FIXED | times | {"provider": provider} | columns))


def fake_rows() -> list[Row]:
    """Some of everything that reports show."""
    rows = []
    for workload, pairs in (("cifar", 15), ("imagenet", 16)):
        for mode in ("forward_backward", "second_order"):
            shared = {"workload": workload, "pairs": pairs, "mode": mode, "error": 2e-7, "tolerance": 1e-4}
            rows.append(fake_row("eager", median_ms=100.0, peak_mib=200.0, first_call_ms=120.0, **shared))
            rows.append(fake_row("cpu", median_ms=20.0, peak_mib=50.0, floor_ms=10.0, first_call_ms=21.0, **shared))
            status = {"status": "unsupported", "note": "cannot", "median_ms": None} if mode == "second_order" else {}
            rows.append(fake_row("compile", **({"median_ms": 40.0, "peak_mib": 90.0} | shared | status)))
        shared = {"workload": workload, "pairs": pairs, "batch": 4, "error": 1e-3, "tolerance": 3e-3}
        for mode in ("step", "hypergradient"):
            for provider, ms in (("naive", 900.0), ("eager", 600.0), ("exact", 300.0)):
                if (mode, provider) != ("hypergradient", "naive"):
                    rows.append(fake_row(provider, mode=mode, median_ms=ms, peak_mib=ms, process_mib=ms, **shared))
        rows += [
            fake_row("exact", mode="step", part=part, workload=workload, batch=4, pairs=pairs, median_ms=ms)
            for part, ms in (("source network", 100.0), ("rest", 205.0))
        ]
    for size in (16, 32, 64):
        shared = {"sweep": "pairs", "size": size, "pairs": size, "workload": "imagenet"}
        rows.append(fake_row("cpu", median_ms=2.0 * size, **shared))
        status = {"status": "out of memory", "median_ms": None} if size == 64 else {"median_ms": 0.5 * size**2}
        rows.append(fake_row("eager", **shared, **status))
    rows.append(fake_row("torch", mode="peak", workload="product 2 x 2", median_ms=2.0, flop=1e9, flags="warm cache"))
    rows.append(fake_row("torch", mode="peak", workload="copy", median_ms=2.0, bytes=1e8, flags="warm cache"))
    return rows
