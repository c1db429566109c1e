"""Figures and tables of runs from several sources."""

import pytest
import yaml

from l2t_fast.report import build_report
from l2t_fast.report.folder import read_comparison
from l2t_fast.report.sources import of_source, source_names, source_rows, source_sums
from tests.report.fake_runs import fake_run, run_config, write_csv
from tests.report.test_page import assert_self_contained, read_page

SOURCES = {
    "tiny": {"model": "resnet8", "checkpoint": "somewhere/tiny.pt"},
    "big": {"model": "efficientnet-lite0", "checkpoint": "default", "image_size": 224},
}
LAYERS = ["tiny/a", "tiny/b", "big/a"]


def lambdas(folder, values):
    """Every epoch's lambda of each pair of LAYERS with the target layers x and y."""
    rows = [
        [epoch, layer, target, value, 0]
        for epoch in (1, 2)
        for (layer, target), value in zip([(s, t) for s in LAYERS for t in "xy"], values, strict=True)
    ]
    write_csv(folder / "pair_weights.csv", ["epoch", "source_layer", "target_layer", "mean", "std"], rows)


@pytest.fixture
def comparison(tmp_path):
    for seed, values in enumerate([(1, 1, 1, 1, 2, 4), (3, 1, 1, 1, 2, 2)]):
        config = run_config("l2t-ww", seed, 2)
        del config["source"]
        folder = tmp_path / "runs" / f"l2t-ww-seed{seed}"
        fake_run(
            folder,
            "l2t-ww",
            seed,
            2,
            config=config | {"sources": SOURCES},
            source_layers=LAYERS,
            target_layers=["x", "y"],
        )
        lambdas(folder, values)
    return read_comparison(tmp_path)


def test_lambda_is_summed_source_by_source(comparison):
    run = comparison.runs[0]
    assert source_names(comparison.runs) == ["tiny", "big"]
    assert source_sums(run) == {"tiny": {1: 4.0, 2: 4.0}, "big": {1: 6.0, 2: 6.0}}
    tiny, big = source_rows(comparison)
    assert (tiny.source, tiny.pairs, tiny.total.mean, tiny.mean) == ("tiny", 4, 5.0, 1.25)
    assert (big.source, big.pairs, big.total.mean, big.mean) == ("big", 2, 5.0, 2.5)
    assert tiny.share == pytest.approx(tiny.total.mean / (tiny.total.mean + big.total.mean))
    assert tiny.share + big.share == pytest.approx(1)


def test_a_run_can_be_cut_down_to_one_source(comparison):
    part = of_source(comparison.runs[0], "big")
    assert set(part.pair_weights) == set(part.channel_weights) == {("a", "x"), ("a", "y")}


def test_the_page_says_which_source_helped(comparison):
    page = read_page(comparison.path)
    assert_self_contained(page)
    assert "L2T-ww big 2 5.00 1.41 50.0 % 2.50" in page.text
    assert "tiny: resnet8, from tiny.pt; big: efficientnet-lite0, published weights, side 224" in page.text
    for text in ("Which source: Σ λ over training (L2T-ww)", "λ over training (L2T-ww, source big)"):
        assert text in page.text
    assert ">Σ 5.00<" in (comparison.path / "report.html").read_text()
    plots = {path.stem for path in (comparison.path / "plots").iterdir()}
    assert {"source_weights_l2t-ww", "channel_weights_l2t-ww_tiny", "pair_weights_over_epochs_l2t-ww_big"} <= plots


def test_a_single_source_keeps_its_names_even_with_a_slash(tmp_path):
    folder = fake_run(tmp_path / "l2t-ww-seed0", "l2t-ww", epochs=2, source_layers=["a/b", "c"])
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert "sources" not in config
    comparison = read_comparison(folder)
    assert source_names(comparison.runs) == [] and source_rows(comparison) == []
    assert "a/b" in build_report(folder).read_text()
