"""Tables from rows: as cells for the page, as Markdown for README.md and docs/performance.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from l2t_fast.bench.groups import Group, conditions_line, curves, label, machine_key, place
from l2t_fast.bench.rows import DATA, LOSS_MODE_NAMES, OK, Row
from l2t_fast.report.wording import DASH


@dataclass(frozen=True)
class Table:
    """A table with the conditions its figures were measured under."""

    title: str
    header: list[str]
    cells: list[list[str]]
    conditions: str

    def markdown(self) -> str:
        """The table with its conditions below it; the title is the page's business."""
        lines = [self.header, ["---"] * len(self.header), *self.cells]
        text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"{text}\n\n*{self.conditions}.*"


def tables(groups: Sequence[Group]) -> dict[str, list[Table]]:
    """All tables by the name that a marker in a document asks for: one a machine and number of threads, one summary."""
    made = {
        name: [table for part in _by_machine(groups) if (table := make(part)) is not None]
        for name, make in _MAKERS.items()
    }
    return made | {"summary": _together(made["summary"])}


def _by_machine(groups: Iterable[Group]) -> list[list[Group]]:
    parts: dict[tuple, list[Group]] = {}
    for group in groups:
        # Threads are an axis of their own in a sweep over them; a peak is measured with a warm cache.
        *machine, threads, flags = machine_key(group.first)
        sweep = group.first.sweep == "threads"
        parts.setdefault((*machine, None if sweep else threads, sweep or flags), []).append(group)
    return list(parts.values())


def _main(groups: Sequence[Group], *modes: str) -> list[Group]:
    return [g for g in groups if g.first.mode in modes and g.first.sweep is None]


def _summary(groups: Sequence[Group]) -> Table | None:
    """What the README shows: ratios to the baselines, a line for each of the paper's two set-ups."""

    def faster(slower: str, of: Callable[[Group], Row | None]) -> Callable[[Group], str | None]:
        def cell(group: Group) -> str | None:
            ratio = group.ratio(slower, of(group))
            return ratio and _ratio(ratio)

        return cell

    def smaller(larger: str, of: Callable[[Group], Row | None]) -> Callable[[Group], str | None]:
        def cell(group: Group) -> str | None:
            row, other = of(group), group.row(larger)
            return (
                f"{other.peak_mib / row.peak_mib:.1f} x" if row and other and row.peak_mib and other.peak_mib else None
            )

        return cell

    def exact(group: Group) -> Row | None:
        return group.row("exact")

    columns = {
        "loss and gradient": ("forward_backward", faster("eager", Group.ours)),
        "the same, against `torch.compile`": ("forward_backward", faster("compile", Group.ours)),
        "loss, gradient, Hessian-vector product": ("second_order", faster("eager", Group.ours)),
        "memory of loss and gradient": ("forward_backward", smaller("eager", Group.ours)),
        "training step": ("step", faster("eager", exact)),
        "the same, against the published loop": ("step", faster("naive", exact)),
        "memory of the step, against the published loop": ("step", smaller("naive", exact)),
    }
    lines, used = [], []
    for workload in ("cifar", "imagenet"):
        main = [g for g in _main(groups, "forward_backward", "second_order", "step") if g.first.workload == workload]
        # Reversed, so that of several batches the first stands.
        by_mode = {g.first.mode: g for g in reversed(main) if (g.first.dtype, g.first.layout) == ("float32", "NCHW")}
        cells = [cell(by_mode[mode]) if mode in by_mode else None for mode, cell in columns.values()]
        if any(cells):
            used += by_mode.values()
            lines.append([_set_up(by_mode), *(cell or DASH for cell in cells)])
    return Table("Summary", ["float32", *columns], lines, conditions_line(used)) if lines else None


def _set_up(by_mode: dict[str, Group]) -> str:
    """Machine, workload and batches of a line of the summary."""
    loss = [group.first for mode, group in by_mode.items() if mode != "step"]
    step = [group.first for mode, group in by_mode.items() if mode == "step"]
    batches = [f"B={row.batch}" for row in loss[:1]] + [f"step B={row.batch}" for row in step]
    first = (loss + step)[0]
    return f"{first.device}, {first.capability}: {first.workload}, {first.pairs} pairs, {', '.join(batches)}"


def _together(made: Sequence[Table]) -> list[Table]:
    """One table of all machines' lines."""
    lines = [line for table in made for line in table.cells]
    conditions = ". ".join(table.conditions for table in made)
    return [Table(made[0].title, made[0].header, lines, conditions)] if made else []


def _loss(groups: Sequence[Group]) -> Table | None:
    """A line a piece of work and a column a provider; empty where a provider took no part."""
    used = _main(groups, *LOSS_MODE_NAMES)
    providers = sorted(dict.fromkeys(row.provider for group in used for row in group.rows), key=place)
    cells = []
    for group in used:
        first, eager, ours = group.first, group.row("eager"), group.ours()
        ratio = group.ratio("eager", ours)
        cells.append(
            [
                f"{first.workload}, B={first.batch}, {first.pairs} pairs",
                f"{first.dtype}, {first.layout}",
                LOSS_MODE_NAMES[first.mode],
                *(_time_in_one(group.row(provider)) for provider in providers),
                _ratio(ratio) if ratio else DASH,
                _share(ours) if ours else DASH,
                *(f"{of(eager)}, {of(ours)}" if eager and ours else DASH for of in (_mib, _error)),
            ]
        )
    header = ["workload", "features", "work", *(f"{label(provider)}, ms" for provider in providers)]
    header += ["times as fast as plain PyTorch", "of the roofline", "peak MiB, plain and ours", "error, plain and ours"]
    notes = dict.fromkeys(row.note for group in used for row in group.rows if row.median_ms is None and row.note)
    return Table("Matching loss", header, cells, "; ".join([conditions_line(used), *notes])) if cells else None


def _steps(mode: str, title: str, baseline: str) -> Callable[[Sequence[Group]], Table | None]:
    def make(groups: Sequence[Group]) -> Table | None:
        cells, used = [], []
        for group in _main(groups, mode):
            used.append(group)
            base = group.row(baseline)
            for row in group.rows:
                cells.append(
                    [
                        f"{row.workload}, B={row.batch}",
                        label(row.provider),
                        *_time(row),
                        _ratio(base.median_ms / row.median_ms) if base and base.median_ms and row.median_ms else DASH,
                        _mib(row),
                        _mib(row, "process_mib"),
                        _error(row),
                    ]
                )
        header = ["set-up", "provider", "median ms", "p20 to p80", f"faster than {label(baseline)}"]
        header += ["peak MiB", "process MiB", "error"]
        return Table(title, header, cells, conditions_line(used)) if cells else None

    return make


def _parts(groups: Sequence[Group]) -> Table | None:
    """A line a part and a column a provider; empty where a provider does nothing of the kind."""
    used = [group for group in _main(groups, "step") if group.parts]
    providers = list(dict.fromkeys(row.provider for group in used for row in group.parts))
    cells = []
    for group in used:
        found = {(row.provider, row.part): row.median_ms for row in group.parts}
        totals = {name: sum(ms for (own, _), ms in found.items() if own == name) for name in providers}
        where = f"{group.first.workload}, B={group.first.batch}"
        for part in dict.fromkeys(row.part for row in group.parts):
            times = [(found.get((name, part)), totals[name]) for name in providers]
            cells.append([where, part, *("" if ms is None else f"{ms:.0f} ({ms / total:.0%})" for ms, total in times)])
        cells.append([where, "**sum**", *(f"{total:.0f}" if total else "" for total in totals.values())])
        data = " and data" if any(row.part == DATA for row in group.parts) else ""
        told = f"the step by itself, without the clock{data}"
        cells.append([where, told, *(_ms(group.row(name)) if totals[name] else "" for name in providers)])
    header = ["set-up", "part, ms (share)", *map(label, providers)]
    return Table("Where a step's time goes", header, cells, conditions_line(used)) if cells else None


def _setup(groups: Sequence[Group]) -> Table | None:
    """Set-up and first calls, which are in no other figure."""
    used = [g for g in _main(groups, *LOSS_MODE_NAMES, "step", "hypergradient") if g.first.dtype == "float32"]
    used = [g for g in used if g.first.layout == "NCHW" and g.first.workload in ("cifar", "imagenet")]
    cells = []
    for group in used:
        first = group.first
        calls = [f"{label(row.provider)}: {row.first_call_ms:,.0f}" for row in group.rows if row.first_call_ms]
        if calls:
            work = LOSS_MODE_NAMES.get(first.mode, first.mode)
            cells.append([f"{first.workload}, B={first.batch}", work, "; ".join(calls)])
    header = ["workload", "work", "set-up and first call, ms"]
    return Table("Set-up and first call", header, cells, conditions_line(used)) if cells else None


def _scaling(groups: Sequence[Group]) -> Table | None:
    used = [group for group in groups if group.first.sweep is not None]
    cells = []
    for curve in curves(used):
        fit = curve.exponent()
        times = ", ".join(f"{size}: {ms:.3g}" for size, ms in zip(curve.sizes, curve.milliseconds, strict=True))
        cells.append(
            [
                curve.axis,
                curve.workload,
                LOSS_MODE_NAMES[curve.mode],
                label(curve.provider),
                times or DASH,
                f"{fit[0]:.2f} (R² {fit[1]:.3f})" if fit else DASH,
                DASH if curve.exhausted_at is None else f"at {curve.exhausted_at}",
            ]
        )
    header = ["axis", "workload", "work", "provider", "size: ms", "exponent", "out of memory"]
    return Table("Scaling", header, cells, conditions_line(used)) if cells else None


def _peaks(groups: Sequence[Group]) -> Table | None:
    used = _main(groups, "peak")
    cells = []
    for row in (row for group in used for row in group.rows if row.status == OK):
        rate = f"{row.flop / row.p20_ms / 1e6:.0f} GFLOP/s" if row.flop else f"{row.bytes / row.p20_ms / 1e6:.0f} GB/s"
        cells.append([f"{row.workload}, {row.dtype}", rate])
    return Table("Peaks of this device", ["", "measured"], cells, conditions_line(used)) if cells else None


_MAKERS: dict[str, Callable[[Sequence[Group]], Table | None]] = {
    "summary": _summary,
    "peaks": _peaks,
    "loss": _loss,
    "step": _steps("step", "Whole training step", "naive"),
    "step-parts": _parts,
    "hypergradient": _steps("hypergradient", "Hypergradient alone", "eager"),
    "scaling": _scaling,
    "set-up": _setup,
}


def _ratio(value: float) -> str:
    return f"{value:.2f} x" if value < 10 else f"{value:.1f} x"


def _number(value: float) -> str:
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f}"


def _ms(row: Row | None) -> str:
    return DASH if row is None or row.median_ms is None else _number(row.median_ms)


def _time(row: Row) -> list[str]:
    if row.median_ms is None:
        return [row.status + (f" ({row.note})" if row.note else ""), DASH]
    return [_number(row.median_ms), f"{_number(row.p20_ms)} to {_number(row.p80_ms)}"]


def _time_in_one(row: Row | None) -> str:
    if row is None:
        return ""
    return row.status if row.median_ms is None else f"{_ms(row)} ({_number(row.p20_ms)} to {_number(row.p80_ms)})"


def _mib(row: Row, column: str = "peak_mib") -> str:
    value = getattr(row, column)
    return DASH if value is None else _number(value)


def _share(row: Row) -> str:
    return DASH if row.roofline_share is None else f"{row.roofline_share:.0%}"


def _error(row: Row) -> str:
    return DASH if row.error is None else f"{row.error:.0e}"
