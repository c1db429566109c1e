import errno
import json
import os
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from l2t_fast.errors import L2TFastError
from l2t_fast.report import build_report, plots_saliency
from l2t_fast.report.figure import save_plot
from l2t_fast.report.plots_saliency import CELL, GAP, _fitted, saliency_figure, saliency_plot
from l2t_fast.report.saliency_maps import FOLDER, Looked, SaliencyMaps
from tests.report.fake_runs import fake_comparison


def maps_of(*kinds_of_runs, size=5, channels=3):
    draw = np.random.default_rng(0)
    runs = [
        Looked(
            method=f"method{number}",
            run=f"method{number}-seed4",
            seed=4,
            predicted=[1, 0],
            probability=[0.25, 0.875],
            maps={kind: draw.integers(0, 256, (2, size, size), np.uint8) for kind in kinds},
        )
        for number, kinds in enumerate(kinds_of_runs)
    ]
    images = draw.integers(0, 256, (2, size, size, channels), np.uint8)
    return SaliencyMaps({"dataset": "x"}, 3, [7, 2], [0, 0], ["cat & <b>", "a very long name of a class"], images, runs)


def test_what_is_written_reads_back(tmp_path):
    maps = maps_of(["saliency"], ["saliency", "Grad-CAM a.b"])
    maps.write(tmp_path / "new")
    found = SaliencyMaps.read(tmp_path / "new")
    assert found.class_names == maps.class_names and found.indices == [7, 2] and found.seed == 3
    assert np.array_equal(found.images, maps.images)
    for before, after in zip(maps.runs, found.runs, strict=True):
        assert before.maps.keys() == after.maps.keys() and before.probability == after.probability
        assert all(np.array_equal(before.maps[kind], after.maps[kind]) for kind in before.maps)
    assert SaliencyMaps.read(tmp_path) is None


@pytest.mark.parametrize(("size", "channels"), [(5, 1), (300, 3)])
def test_the_figure_names_classes_answers_and_layers(tmp_path, size, channels):
    maps_of(["saliency"], ["saliency", "Grad-CAM a.b"], size=size, channels=channels).write(tmp_path / FOLDER)
    plot = saliency_plot(tmp_path, tmp_path / "plots", "Conditions: none.")
    for text in (
        "cat &amp; &lt;b&gt;",
        "\N{BALLOT X} a ve",
        "(25\N{NO-BREAK SPACE}%)",
        "88\N{NO-BREAK SPACE}%",
        ">a.b<",
    ):
        assert text in plot.svg, text
    assert "drawn with seed 3" in plot.caption and "runs with seed 4" in plot.caption
    assert "Grad-CAM" in plot.title and plot.caption.endswith("Conditions: none.") and plot.across
    assert saliency_plot(tmp_path / "plots", tmp_path, "") is None


def test_damaged_maps_do_not_keep_a_page_from_being_made(tmp_path):
    comparison = fake_comparison(tmp_path, methods=("scratch",), seeds=(0,), epochs=2)
    maps_of(["saliency"]).write(comparison / FOLDER)
    assert "<h2>What the networks look at" in build_report(comparison).read_text()
    (comparison / FOLDER / "saliency.npz").write_bytes(b"PK")
    page = build_report(comparison).read_text()
    assert "damaged saliency maps" in page and "<h2>What the networks look at" not in page
    for content in ("[]", "{", '{"runs": [{}]}'):
        (comparison / FOLDER / "saliency.json").write_text(content)
        with pytest.raises(L2TFastError, match="damaged saliency maps"):
            SaliencyMaps.read(comparison / FOLDER)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": [0, 2]},
        {"labels": [0]},
        {"labels": "ab"},
        {"indices": [0.5, 1]},
        {"class_names": [1, 2]},
        {"class_names": "cats"},
        {"seed": None},
        {"test_set": []},
        {"runs": 3},
    ],
)
def test_maps_whose_parts_do_not_fit_are_damaged(tmp_path, change):
    maps_of(["saliency"]).write(tmp_path)
    content = json.loads((tmp_path / "saliency.json").read_text())
    (tmp_path / "saliency.json").write_text(json.dumps(content | change))
    with pytest.raises(L2TFastError, match="damaged saliency maps"):
        SaliencyMaps.read(tmp_path)


def test_answers_and_maps_that_do_not_fit_are_damaged(tmp_path):
    maps = maps_of(["saliency"])
    (run,) = maps.runs
    for wrong in (
        replace(run, predicted=[0, -1]),
        replace(run, probability=["1", "2"]),
        replace(run, maps={"saliency": np.zeros((1, 2, 2), np.uint8)}),
        replace(run, maps={"saliency": np.zeros((2, 2, 2))}),
    ):
        replace(maps, runs=[wrong]).write(tmp_path)
        with pytest.raises(L2TFastError, match="damaged saliency maps"):
            SaliencyMaps.read(tmp_path)


@pytest.mark.parametrize("full", ["saliency.npz.tmp", "saliency.json.tmp"])
def test_a_full_disk_leaves_the_maps_of_before(tmp_path, monkeypatch, full):
    maps_of(["saliency"]).write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fsync(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(full):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(L2TFastError, match="could not be written: No space left on device"):
        maps_of(["saliency"], ["saliency"]).write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_new_maps_are_never_taken_for_the_old_ones_parts(tmp_path, monkeypatch):
    maps_of(["saliency"]).write(tmp_path)
    replace_, found = os.replace, []

    def replaced(temporary, path):
        found.append((path.name, (tmp_path / "saliency.json").exists()))
        replace_(temporary, path)

    monkeypatch.setattr(os, "replace", replaced)
    maps_of(["saliency"], ["saliency"]).write(tmp_path)
    assert found == [("saliency.npz", False), ("saliency.json", False)]
    assert len(SaliencyMaps.read(tmp_path).runs) == 2


def test_a_full_disk_leaves_the_figure_as_it_was(tmp_path, monkeypatch):
    before = saliency_figure(maps_of(["saliency"]), tmp_path).read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(L2TFastError, match=r"saliency\.png could not be written: No space left on device"):
        saliency_figure(maps_of(["saliency", "Grad-CAM"]), tmp_path)
    assert (tmp_path / "saliency.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["saliency.png"]


def test_more_images_than_a_figure_can_show_do_not_keep_a_page_from_being_made(tmp_path):
    """Drawing them took all the memory there was, each time the page was made."""
    comparison = fake_comparison(tmp_path, methods=("scratch",), seeds=(0,), epochs=2)
    maps = maps_of(["saliency"])
    many = [0] * 151
    (run,) = maps.runs
    run = replace(run, predicted=many, probability=many, maps={"saliency": np.zeros((151, 2, 2), np.uint8)})
    images = np.zeros((151, 2, 2, 1), np.uint8)
    replace(maps, images=images, indices=many, labels=many, runs=[run]).write(comparison / FOLDER)
    page = build_report(comparison).read_text()
    assert "151 images with 1 kind of maps each are too many for a figure" in page
    assert "<h2>What the networks look at" not in page


def test_texts_are_measured_without_a_picture_of_the_figure_s_size(tmp_path, monkeypatch):
    """One for each of them took 12 GB for 60 images."""
    monkeypatch.setattr(Figure, "_get_renderer", lambda figure: pytest.fail("one was made"))
    assert saliency_figure(maps_of(["saliency", "Grad-CAM"]), tmp_path).stat().st_size > 1000


def test_runs_are_told_apart_by_seeds_and_numbers_of_images_where_they_differ(tmp_path):
    maps = maps_of(["saliency"], ["saliency"], ["saliency"])
    called = [("fm-single", 4, 10), ("fm-single", 5, 10), ("at", 4, 250)]
    runs = [
        replace(run, method=name, seed=seed, per_class=images)
        for run, (name, seed, images) in zip(maps.runs, called, strict=True)
    ]
    replace(maps, runs=runs).write(tmp_path / FOLDER)
    plot = saliency_plot(tmp_path, tmp_path, "")
    shown = {text: plot.svg.count(f">{text}<") for text in ("seed 4", "seed 5", "(single)", "N = 10", "N = 250")}
    assert shown == {"seed 4": 2, "seed 5": 1, "(single)": 2, "N = 10": 2, "N = 250": 1}
    assert "runs with seeds 4, 5 and 10, 250 training images a class" in plot.caption
    replace(maps, runs=runs[:1]).write(tmp_path / FOLDER)
    alone = saliency_plot(tmp_path, tmp_path, "")
    assert "N =" not in alone.svg and "seed 4 and 10 training images a class" in alone.caption


@pytest.mark.parametrize(
    "name", ["n02086646-Blenheim_spaniel", "001.Black_footed_Albatross", "airport_inside", "warehouse", "WWWWWWWW"]
)
def test_names_of_classes_and_methods_stay_within_their_columns(tmp_path, monkeypatch, name):
    """Measured as they are drawn."""
    written = []

    def measured(figure, *rest):
        figure.canvas.draw()
        axes = figure.axes[0]
        to_mosaic = axes.transData.inverted().transform
        for text in axes.texts:
            box = text.get_window_extent()
            if text.get_rotation() == 0:
                written.append((text.get_text(), *to_mosaic([(box.x0, 0), (box.x1, 0)])[:, 0]))
        return save_plot(figure, *rest)

    monkeypatch.setattr(plots_saliency, "save_plot", measured)
    maps = replace(maps_of(*[["saliency"]] * 3), class_names=[name, f"{name}s"])
    maps.runs[2] = replace(maps.runs[2], method="a-method-of-somebody")
    saliency_figure(maps, tmp_path)
    assert len(written) == 3 + 2 * 4
    for text, left, right in written:
        column = round((left + right - CELL) / 2 / (CELL + GAP)) * (CELL + GAP)
        assert column - GAP / 2 <= left and right <= column + CELL + GAP / 2, text


def test_saliency_alone_says_nothing_of_grad_cam(tmp_path):
    maps = maps_of(["saliency"])
    assert saliency_figure(maps, tmp_path).read_bytes().startswith(b"\x89PNG")
    maps.write(tmp_path / FOLDER)
    plot = saliency_plot(tmp_path, tmp_path, "")
    assert "Grad-CAM" not in plot.caption + plot.title


def test_small_images_keep_their_pixels_and_large_ones_are_averaged():
    small = np.array([[0, 255], [128, 7]], np.uint8)
    assert set(np.unique(_fitted(small))) == {0, 7, 128, 255}
    large = np.tile(np.array([[0, 200]], np.uint8), (4 * CELL, 2 * CELL))
    assert np.unique(_fitted(large)).tolist() == [100]
