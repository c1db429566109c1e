"""Shows a run folder as tables."""

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from l2t_fast.errors import L2TFastError
from l2t_fast.files import expand_user, read_arrays
from l2t_fast.layer_names import split_source_layer
from l2t_fast.report import results_table
from l2t_fast.text import printable
from l2t_fast.transfer.run_folder import METRICS, PAIR_WEIGHTS, RunFolder, read_rows

#: Channels shown a pair, those with the largest weight first.
TOP_CHANNELS = 3
#: Characters of a pair's name that stay on one line of a narrow terminal.
LONGEST_PAIR = 40
#: Characters of the narrowest column of channels, and of all columns but the first and the last, with their borders.
CHANNELS, BETWEEN, BETWEEN_WITH_UNTRAINED = 12, 25, 37


def inspect_run(path: str | Path, console: Console) -> None:
    """Print what a run or a comparison in `path` came to.

    Raises:
        L2TFastError: there is neither.
    """
    path = expand_user(path)
    if (path / "results.csv").exists() or (path / "runs").is_dir():
        console.print(results_table(path))
        return
    folder = RunFolder(path)
    if not folder.metrics.exists():
        raise L2TFastError(f"{path} holds neither a run (metrics.csv) nor a comparison (results.csv)")
    rows = read_rows(folder.metrics, METRICS)
    if not rows:
        raise L2TFastError(f"{folder.metrics} holds no epoch yet")
    try:
        tables = _tables(folder, rows, console.width)
    except ValueError as error:  # a number that is none
        raise L2TFastError(f"{path} cannot be shown, its files are damaged: {error}") from error
    for table in tables:
        console.print(table)


def _tables(folder: RunFolder, rows: list[dict[str, str]], width: int) -> list[Table]:
    # As the trainer chooses: at the same accuracy the lower loss.
    best = max(rows, key=lambda row: (float(row["validation_accuracy"]), -float(row["validation_loss"])))
    epoch = best["epoch"]
    summary = Table("", "", title=_shown(folder.path), show_header=False)
    if folder.result.exists():
        result = folder.read_result()
        epoch = str(result["best_epoch"])
        summary.add_row("method", _shown(f"{result['method']}, seed {result['seed']}"))
        summary.add_row("test accuracy", f"{result['test_accuracy']:.2%}")
        summary.add_row("validation accuracy", f"{result['validation_accuracy']:.2%} (epoch {epoch})")
        summary.add_row("epochs", f"{result['epochs']} in {result['seconds']:.1f} s")
    else:
        summary.add_row("state", _shown(f"not finished: {rows[-1]['epoch']} epochs are done"))
        summary.add_row("validation accuracy", f"{float(best['validation_accuracy']):.2%} (epoch {_shown(epoch)})")
    tables = [summary]
    pairs = _pair_weights(folder, epoch)
    untrained = _pair_weights(folder, "0")
    if not pairs or not untrained.keys() >= pairs.keys():
        untrained = {}
    channels = _top_channels(folder)
    if pairs and channels and pairs.keys() != channels.keys():
        raise ValueError(f"{folder.pair_weights.name} and {folder.channel_weights.name} are of other pairs")
    if pairs or channels:
        longest = max(len(pair) for pair in pairs or channels)
        room = width - (BETWEEN_WITH_UNTRAINED if untrained else BETWEEN)
        of_pair = min(longest, LONGEST_PAIR, max(room - CHANNELS, CHANNELS))
        table = Table(
            Column("pair", min_width=of_pair, overflow="fold"),  # the channels wrap first
            "lambda",
            "spread",
            *(["untrained"] if untrained else []),
            Column("channels with the largest weight", max_width=max(room - of_pair, CHANNELS)),
            title="What was transferred where (means over the images)",
        )
        by_source: dict[str, list[str]] = {}
        for pair in pairs or channels:
            by_source.setdefault(split_source_layer(pair)[0], []).append(pair)
        for source, own in by_source.items():
            for pair in own:
                numbers = [f"{number:.3f}" for number in pairs[pair]] if pairs else ["1", ""]
                first = [f"{untrained[pair][0]:.3f}"] if untrained else []
                table.add_row(_shown(pair), *numbers, *first, channels.get(pair, ""))
            if source and pairs:
                total = f"{sum(pairs[pair][0] for pair in own):.3f}"
                first = [f"{sum(untrained[pair][0] for pair in own):.3f}"] if untrained else []
                table.add_row(_shown(f"sum over {source}"), total, "", *first, "", style="bold", end_section=True)
        tables.append(table)
    return tables


def _shown(text: object) -> str:
    """Neither markup of rich nor control characters, whoever wrote the text."""
    return escape(printable(str(text)))


def _pair_weights(folder: RunFolder, epoch: str) -> dict[str, tuple[float, float]]:
    """Per pair lambda's mean and spread over the images in an epoch."""
    if not folder.pair_weights.exists():
        return {}
    return {
        f"{row['source_layer']}->{row['target_layer']}": (float(row["mean"]), float(row["std"]))
        for row in read_rows(folder.pair_weights, PAIR_WEIGHTS)
        if row["epoch"] == epoch
    }


def _top_channels(folder: RunFolder) -> dict[str, str]:
    """Per pair the channels with the largest mean weight, each relative to the uniform weight 1 / C_m."""
    if not folder.channel_weights.exists():
        return {}
    return {
        pair: ", ".join(f"{c} x{w[c] * len(w):.2f}" for c in np.argsort(-w)[:TOP_CHANNELS])
        for pair, w in read_arrays(folder.channel_weights).items()
        if w.ndim == 1 and np.issubdtype(w.dtype, np.floating)
    }
