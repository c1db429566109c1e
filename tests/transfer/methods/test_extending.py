"""The examples of docs/extending.md do what the page says."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from l2t_fast.config import TargetConfig
from l2t_fast.data import DataConfig, load_data
from l2t_fast.errors import L2TFastError
from l2t_fast.models import layer_names, list_models
from l2t_fast.plugins import load_plugin
from l2t_fast.transfer import Trainer, run

PAGE = (Path(__file__).parents[3] / "docs" / "extending.md").read_text(encoding="utf-8")


def examples(heading: str) -> list[str]:
    """The Python blocks below a heading of the page."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


@pytest.fixture
def plugin(tmp_path, registries):
    """Loads code as a file that --plugin names."""

    def load(name: str, code: str) -> None:
        (tmp_path / f"{name}.py").write_text(code)
        load_plugin(str(tmp_path / f"{name}.py"))

    return load


def test_the_method_trains_and_its_test_passes(plugin, make_config, quiet, one_batch, falls):
    plugin("pairwise", examples("A method")[0])
    result = run(make_config(method="pairwise"), progress=quiet)
    assert result["method"] == "pairwise" and len(result["pairs"]) == 3
    test: dict = {}
    exec(examples("A method")[1], test)
    test["test_loss_is_the_distance_of_cosines"](one_batch)
    test["test_training_lowers_it"](one_batch, falls)
    assert sum(name.startswith("test_") for name in test) == 2


@pytest.mark.parametrize(("example", "name"), [(0, "small"), (1, "two_convolutions")])
def test_the_network_can_be_a_target(plugin, make_config, quiet, example, name):
    plugin(name, examples("A network")[example])
    assert name in list_models() and layer_names(name) == ["first", "second"]
    trainer = Trainer(make_config(method="l2t-ww", target=TargetConfig(name)), quiet)
    assert len(trainer.pairs) == 6
    x, y = next(iter(trainer.data.train))
    _, matching, _ = trainer.train_batch(x, y)
    assert matching > 0
    trainer = Trainer(make_config(method="fm", target=TargetConfig(name, layers=["second"])), quiet)
    assert trainer.pairs == [(0, 0)]


@pytest.mark.parametrize(
    ("line", "instead", "told"),
    [
        ('"second": 32}', '"second": 64}', r"shape \(1, 32, 2, 2\) at 'second' for one image, but .* has 64 channels"),
        ("yield name, x", "yield name.title(), x", "trunk of TwoConvolutions does not yield the map 'first'"),
        ("Linear(32, num_classes)", "Linear(32, 10)", r"logits of shape \(1, 10\) .* for 3 classes .* \(1, 3\)"),
        ("x.mean((2, 3)))", "x.mean((2, 3))),", "must return its logits, one tensor, and a list of its feature maps"),
    ],
)
def test_a_network_with_a_mistake_is_told_before_training(make_config, quiet, plugin, line, instead, told):
    code = examples("A network")[1]
    assert line in code
    plugin("two_convolutions", code.replace(line, instead))
    with pytest.raises(L2TFastError, match=told):
        Trainer(make_config(method="scratch", target=TargetConfig("two_convolutions")), quiet)


def test_the_other_task_is_learned():
    code: dict = {}
    torch.manual_seed(0)
    exec(examples("A task that is no classification")[0], code)
    before = [p.clone() for p in code["meta"].parameters()]
    x = F.interpolate(torch.rand(8, 3, 4, 4), scale_factor=8)
    y = (3 * x[:, 0]).long()  # how red a square is
    losses = [code["task_loss"](code["target"](x)[0], y).item()]
    for _ in range(30):
        code["train_step"](x, y)
    losses.append(code["task_loss"](code["target"](x)[0], y).item())
    assert losses[1] < 0.5 * losses[0]
    assert all((p != b).any() for p, b in zip(code["meta"].parameters(), before, strict=True))


def test_the_data_set_is_read(tmp_path, plugin):
    plugin("table", examples("A data set")[0])
    rows = ["file,class,part"]
    for number in range(12):
        Image.new("RGB", (6, 6), (20 * number, 0, 0)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{'cat' if number % 2 else 'dog'},{'test' if number < 4 else 'train'}")
    (tmp_path / "images.csv").write_text("\n".join(rows))
    data = load_data(DataConfig(dataset="table", data_dir=str(tmp_path)))
    assert data.class_names == ["cat", "dog"] and len(data.test.dataset) == 4
    assert len(data.train.dataset) == 6 and len(data.validation.dataset) == 2


def test_every_example_of_the_page_is_run():
    found = [
        len(examples(heading))
        for heading in ("A method", "A network", "A data set", "A task that is no classification")
    ]
    assert found == [2, 2, 1, 1] and PAGE.count("```python") == sum(found)
