import shutil
import sys

import numpy as np
import pytest
import torch
import yaml

import l2t_fast.saliency
from l2t_fast.cli import main
from l2t_fast.data import DataConfig, load_data
from l2t_fast.errors import L2TFastError
from l2t_fast.files import held
from l2t_fast.models import build_model
from l2t_fast.report.saliency_maps import SaliencyMaps
from l2t_fast.saliency import _bytes, explain_runs
from l2t_fast.transfer.checkpoint import load_checkpoint


@pytest.fixture
def comparison(made, tmp_path):
    return shutil.copytree(made, tmp_path / "compare")


def test_a_comparison_gets_a_figure_on_its_page(comparison):
    page = explain_runs([comparison], images=4)
    assert page == comparison / "report.html"
    text = page.read_text()
    assert "What the networks look at" in text and "data:image/png;base64" in text
    assert (comparison / "plots" / "saliency.png").stat().st_size > 5000
    maps = SaliencyMaps.read(comparison / "saliency")
    assert [(run.method, run.run) for run in maps.runs] == [("scratch", "scratch-seed0"), ("l2t-ww", "l2t-ww-seed0")]
    assert maps.images.shape == (4, 8, 8, 1) and set(maps.labels) == {0, 1, 2}
    assert maps.class_names == ["3", "5", "6"]
    for run in maps.runs:
        assert list(run.maps) == ["saliency", "Grad-CAM"]
        assert all(map.shape == (4, 8, 8) and map.dtype == np.uint8 for map in run.maps.values())


def test_answers_are_those_of_the_best_network_on_the_chosen_images(made, tmp_path):
    out = tmp_path / "maps"
    assert explain_runs([made / "runs" / "l2t-ww-seed1"], out, images=5, seed=7) == out / "saliency.png"
    maps = SaliencyMaps.read(out)
    best = load_checkpoint(made / "runs" / "l2t-ww-seed1" / "checkpoints" / "best.pt")
    network = build_model("vgg5bn", 3, in_channels=1)
    network.load_state_dict(best["model"])
    data = load_data(DataConfig(classes=[3, 5, 6], per_class=8, batch_size=8, seed=1))
    x, y = data.test.dataset[0, np.array(maps.indices)]
    with torch.no_grad():
        probabilities = network.eval()(x)[0].softmax(1)
    assert maps.labels == y.tolist() and maps.runs[0].predicted == probabilities.argmax(1).tolist()
    assert maps.runs[0].probability == pytest.approx(probabilities.gather(1, y[:, None])[:, 0].tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("maps", "kinds"),
    [
        ("none", ["saliency"]),
        ("all", ["saliency", "Grad-CAM features.2", "Grad-CAM features.6", "Grad-CAM features.9"]),
    ],
)
def test_feature_maps_can_be_chosen(made, tmp_path, maps, kinds):
    run = made / "runs" / "scratch-seed0"
    names = build_model("vgg5bn", 3).feature_names
    explain_runs([run], tmp_path, images=2, maps=maps)
    expected = kinds[:1] + [f"Grad-CAM {name}" for name in names] * (maps == "all")
    assert list(SaliencyMaps.read(tmp_path).runs[0].maps) == expected


def test_the_same_images_each_time_or_an_error(made, tmp_path):
    runs = [made / "runs" / name for name in ("scratch-seed0", "scratch-seed1")]
    explain_runs(runs[:1], tmp_path, images=3)
    first = SaliencyMaps.read(tmp_path)
    explain_runs(runs, tmp_path, images=3)
    second = SaliencyMaps.read(tmp_path)
    assert first.indices == second.indices and np.array_equal(first.images, second.images)
    assert np.array_equal(first.runs[0].maps["saliency"], second.runs[0].maps["saliency"])
    for changes in ({"images": 4}, {"images": 3, "seed": 1}):
        with pytest.raises(L2TFastError, match="holds maps of 3 images drawn with seed 0, and these are others"):
            explain_runs(runs, tmp_path, **changes)


def test_of_a_sweep_the_runs_with_the_most_images_are_taken(comparison):
    config_file = comparison / "runs" / "scratch-seed1" / "config.yaml"
    config = yaml.safe_load(config_file.read_text())
    config["data"]["per_class"] = 9
    config_file.write_text(yaml.safe_dump(config))
    explain_runs([comparison], comparison / "maps", images=1)
    assert [run.run for run in SaliencyMaps.read(comparison / "maps").runs] == ["scratch-seed1", "l2t-ww-seed0"]


def test_a_run_that_is_named_twice_has_one_column(made, tmp_path):
    run = made / "runs" / "scratch-seed0"
    again = made / "runs" / "l2t-ww-seed0" / ".." / "scratch-seed0"
    explain_runs([run, made, again, run], tmp_path, images=1, maps="none")
    assert [found.run for found in SaliencyMaps.read(tmp_path).runs] == ["scratch-seed0", "l2t-ww-seed0"]


def test_runs_with_other_test_images_cannot_be_compared(comparison, tmp_path):
    run = comparison / "runs" / "l2t-ww-seed0"
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["test_share"] = 0.3
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(
        L2TFastError, match=r"other test images: data.test_share is 0.3 and 0.2; only runs with the same"
    ):
        explain_runs([comparison], images=1)


def test_mistakes_are_told_in_a_sentence(made, comparison, tmp_path, capsys):
    scratch = made / "runs" / "scratch-seed0"
    shutil.rmtree(comparison / "runs" / "scratch-seed0" / "checkpoints")
    for arguments, said in (
        ([str(scratch)], "--out is needed"),
        ([str(tmp_path / "nowhere"), "--out", str(tmp_path)], "is neither the folder of a finished run"),
        ([str(scratch), "--out", str(tmp_path), "--maps", "some"], "maps is 'some', it must be one of none, last, all"),
        ([str(scratch), "--out", str(tmp_path), "--images", "0"], "images is 0, it must be at least 1"),
        ([str(scratch), "--out", str(tmp_path), "--images", "76"], "too many for a figure, which shows 150 lines: ask"),
        ([str(scratch), "--out", str(tmp_path), "--images", "50", "--maps", "all"], "ask for 37 images or fewer"),
        ([str(scratch), "--out", ""], "--out is empty, it must be a folder"),
        ([str(scratch), "--out", str(scratch / "result.json")], "result.json is no folder"),
        ([str(comparison)], "there is no checkpoint"),
    ):
        assert main(["saliency", *arguments]) == 2
        error = capsys.readouterr().err
        assert said in error and len(error.splitlines()) == 1
        assert not (tmp_path / "saliency.json").exists()
    for run in (comparison / "runs").iterdir():
        (run / "result.json").unlink()
    with pytest.raises(L2TFastError, match="is finished yet"):
        explain_runs([comparison])


def test_maps_of_other_images_are_told_before_others_are_made(made, tmp_path, monkeypatch):
    explain_runs([made / "runs" / "scratch-seed0"], tmp_path, images=3, maps="none")
    monkeypatch.setattr(l2t_fast.saliency, "_look", lambda *given: pytest.fail("maps were made"))
    with pytest.raises(L2TFastError, match="holds maps of 3 images drawn with seed 0, and these are others"):
        explain_runs([made / "runs" / "scratch-seed0"], tmp_path, images=4, maps="none")


def test_a_comparison_that_another_process_is_in_keeps_its_page(comparison, tmp_path):
    with held(comparison):
        with pytest.raises(L2TFastError, match="compare is in use by another process: wait for it, or name another"):
            explain_runs([comparison], images=1, maps="none")
        assert not (comparison / "saliency").exists()
        explain_runs([comparison], tmp_path / "maps", images=1, maps="none")
    assert (tmp_path / "maps" / "saliency.png").exists()


def test_a_run_whose_configuration_was_cut_short_gives_no_maps(comparison, tmp_path):
    path = comparison / "runs" / "scratch-seed0" / "config.yaml"
    whole = path.read_text()
    path.write_text(whole[: whole.index("data:")])  # what is left would be that of another data set
    with pytest.raises(L2TFastError, match=r"config\.yaml is cut short"):
        explain_runs([comparison], tmp_path / "maps", images=1)


def test_a_best_network_that_cannot_be_believed(comparison, tmp_path):
    run = comparison / "runs" / "scratch-seed0"
    best = load_checkpoint(run / "checkpoints" / "best.pt")
    name = next(iter(best["model"]))
    for changes, said in (
        ({"num_classes": None}, None),  # the images say it
        ({"model": {"x": torch.zeros(1)}}, r"best\.pt is of another network: it lacks"),
        ({"model": best["model"] | {name: torch.full_like(best["model"][name], torch.nan)}}, r"best\.pt holds NaN"),
        ({"model": 3}, r"best\.pt holds no weights"),
    ):
        torch.save(best | changes, run / "checkpoints" / "best.pt")
        if said is None:
            explain_runs([run], tmp_path / "maps", images=1)
            continue
        with pytest.raises(L2TFastError, match=said):
            explain_runs([run], tmp_path / "maps", images=1)


def test_without_captum_one_sentence_says_how_to_get_it(made, tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "l2t_fast.saliency.attribution", raising=False)
    monkeypatch.delattr(l2t_fast.saliency, "attribution", raising=False)
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    assert main(["saliency", str(made), "--out", str(tmp_path)]) == 2
    assert "pip install 'l2t_fast[saliency]'" in capsys.readouterr().err


def test_bytes_are_scaled_image_by_image():
    maps = torch.stack([torch.linspace(0, 3, 101).reshape(1, 101), torch.zeros(1, 101)])
    found = _bytes(maps, 99)
    assert found.dtype == np.uint8 and found[0, 0, -1] == 255 and found[0, 0, 99] == 255
    assert found[0, 0, 50] == round(255 * 50 / 99) and not found[1].any()
