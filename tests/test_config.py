import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from l2t_fast.config import CompareConfig, PretrainConfig, SourceConfig, TrainConfig, embedded_config, write_config
from l2t_fast.data import DataConfig
from l2t_fast.errors import L2TFastError
from l2t_fast.models import build_model
from l2t_fast.parsing import add_config_options, new_parser, parse, read_config, to_config
from l2t_fast.transfer.method_entries import parse_method
from l2t_fast.transfer.pairs import resolve_pairs

CONFIGS = Path(__file__).parents[1] / "configs"


def test_the_defaults_are_the_paper_s():
    config = TrainConfig()
    config.check()
    assert (config.method, config.lookahead_steps, config.beta, config.epochs) == ("l2t-ww", 2, 0.5, 200)
    assert (config.lr, config.momentum, config.weight_decay, config.nesterov) == (0.1, 0.9, 1e-4, False)
    assert (config.meta_lr, config.meta_weight_decay) == (1e-4, 1e-4)


def test_python_s_own_kinds_of_values_become_plain_ones(tmp_path):
    config = CompareConfig(
        methods=("scratch", "fm"),
        seeds=range(2),
        per_class=[np.int64(5)],
        beta=1,
        lr=np.float32(0.5),
        out=Path("runs/x"),
        data=DataConfig(dataset="imagefolder", data_dir=Path("images"), cache=np.bool_(True)),
        sources={"a": SourceConfig(checkpoint=Path("a.pt"), normalization=((0, 0, 0), (1, 1, 1)))},
    )
    config.check()
    assert (config.methods, config.seeds, config.per_class) == (["scratch", "fm"], [0, 1], [5])
    assert (config.beta, config.lr, config.out) == (1.0, 0.5, "runs/x") and type(config.beta) is float
    assert (config.data.data_dir, config.data.cache) == ("images", True)
    assert config.sources["a"].checkpoint == "a.pt"
    write_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml", CompareConfig) == config


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (CompareConfig(seeds=2), "seeds is 2, it must be a list of whole numbers"),
        (CompareConfig(methods="scratch"), "methods is 'scratch', it must be a list of texts"),
        (CompareConfig(per_class=1), "per_class is 1, it must be a list of whole numbers or None"),
        (TrainConfig(epochs=2.0), "epochs is 2.0, it must be a whole number"),
        (TrainConfig(epochs=True), "epochs is True, it must be a whole number"),
        (TrainConfig(epochs="2"), "epochs is '2', it must be a whole number"),
        (TrainConfig(lr="0.1"), "lr is '0.1', it must be a number"),
        (TrainConfig(pairs=[(0, 0)]), "pairs is [(0, 0)], it must be text or a list of texts or None"),
        (TrainConfig(target="vgg5bn"), "target is 'vgg5bn', it must be a TargetConfig"),
        (TrainConfig(data={"dataset": "digits"}), "data is {'dataset': 'digits'}, it must be a DataConfig"),
        (TrainConfig(data=DataConfig(batch_size=8.0)), "data.batch_size is 8.0, it must be a whole number"),
        (TrainConfig(sources=[SourceConfig()]), "it must be a dictionary of SourceConfig or None"),
        (TrainConfig(sources={"a": "x"}), "sources is {'a': 'x'}, it must be a dictionary of SourceConfig or None"),
        (TrainConfig(sources={"a": SourceConfig(unit_rms=2)}), "sources.a.unit_rms is 2, it must be True or False"),
        (TrainConfig(device=torch.device("cpu")), "device is device(type='cpu'), it must be text"),
        (TrainConfig(nesterov=1), "nesterov is 1, it must be True or False"),
    ],
)
def test_a_value_of_another_type_is_told_by_its_key(config, said):
    with pytest.raises(L2TFastError, match=re.escape(said)):
        config.check()


def test_a_home_is_written_out(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert TrainConfig(out="~/run").folder() == tmp_path / "run"
    assert CompareConfig(out="~/runs").folder() == tmp_path / "runs"


@pytest.mark.parametrize("kind", [TrainConfig, CompareConfig])
@pytest.mark.parametrize("path", [embedded_config(), *sorted(CONFIGS.glob("*.yaml"))], ids=lambda path: path.name)
def test_every_shipped_file_serves_both_commands(kind, path):
    config = read_config(path, kind)
    config.check()
    written = yaml.safe_load(path.read_text())
    assert config.epochs == written["epochs"] and config.data.per_class == written["data"]["per_class"]


#: (data set, classes, source networks, target, pairs of all-to-all) of each row of the paper.
ROWS = {
    "cifar10_limited": ("imagefolder", 10, ["l2tww_resnet32"], "vgg9bn", 15),
    "cifar100": ("cifar100", 100, ["l2tww_resnet32"], "vgg9bn", 15),
    "stl10": ("stl10", 10, ["l2tww_resnet32"], "vgg9bn", 15),
    "two_sources_stl10": ("stl10", 10, ["l2tww_resnet32", "resnet32"], "vgg9bn", 30),
    "cub200": ("cub200", 200, ["torchvision:resnet34"], "torchvision:resnet18", 16),
    "mit67": ("mit67", 67, ["torchvision:resnet34"], "torchvision:resnet18", 16),
    "stanford40": ("stanford40", 40, ["torchvision:resnet34"], "torchvision:resnet18", 16),
    "stanford_dogs": ("stanford_dogs", 120, ["torchvision:resnet34"], "torchvision:resnet18", 16),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_the_paper_have_its_settings(name):
    config = read_config(CONFIGS / f"{name}.yaml", TrainConfig)
    paper = TrainConfig()
    for key in ("beta", "lookahead_steps", "epochs", "lr", "momentum", "weight_decay", "meta_lr", "meta_weight_decay"):
        assert getattr(config, key) == getattr(paper, key)
    dataset, _, sources, target, _ = ROWS[name]
    small = target == "vgg9bn"
    assert config.data.dataset == dataset and config.data.validation_share == 0.1
    assert (config.data.image_size, config.data.batch_size) == ((32, 128) if small else (224, 64))
    assert config.data.augment == ("crop_flip" if small else "random_resized_crop")
    assert [source.model for source in config.named_sources().values()] == sources and config.target.model == target


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_networks_of_every_shipped_file_fit_its_images_and_each_other(path):
    config = read_config(path, TrainConfig)
    classes, pairs = (ROWS[path.stem][1], ROWS[path.stem][4]) if path.stem in ROWS else (10, None)
    maps, per_source = [], []
    with torch.device("meta"), torch.no_grad():  # shapes alone
        for source in config.named_sources().values():
            size = source.image_size or config.data.image_size
            try:
                made = build_model(source.model, source.num_classes or 1000, layers=source.layers).eval()
            except L2TFastError as error:
                pytest.skip(str(error)) if "pip install" in str(error) else pytest.fail(str(error))
            _, features = made(torch.empty(2, 3, size, size))
            maps += [f"{source.model}/{layer}" for layer in made.feature_names]
            per_source.append(len(features))
        target = build_model(config.target.model, classes, layers=config.target.layers).eval()
        logits, features = target(torch.empty(2, 3, config.data.image_size, config.data.image_size))
    assert logits.shape == (2, classes) and len(features) == len(target.feature_names)
    found = resolve_pairs("all-to-all", maps, target.feature_names, per_source)
    assert len(found) == (pairs or len(maps) * len(features))
    assert len(resolve_pairs("single", maps, target.feature_names, per_source)) == len(per_source)


@pytest.mark.parametrize("name", ["all_methods", "limited_data"])
@pytest.mark.parametrize("row", ROWS)
def test_lists_of_methods_go_behind_the_rows(name, row):
    files = [CONFIGS / f"{row}.yaml", CONFIGS / "compare" / f"{name}.yaml"]
    parser = new_parser()
    add_config_options(parser, CompareConfig)
    given = [word for path in files for word in ("--config", str(path))]
    config = to_config(parse(parser, [*given, "--data.data_dir", "FOLDER"]), CompareConfig)
    config.check()
    assert config.data.dataset == ROWS[row][0] and config.data.data_dir == "FOLDER"
    of_the_paper = {"scratch", "lwf", "at", "lwf-at", "fm", "l2t-w", "l2t-ww"}
    assert {parse_method(entry)[0] for entry in config.methods} == of_the_paper
    assert len(set(config.methods)) == 13 and config.seeds == [0, 1, 2]
    assert config.per_class == ([50, 100, 250, 500, 1000] if name == "limited_data" else None)


def test_limited_cifar10_is_the_paper_s_setting():
    config = read_config(CONFIGS / "cifar10_limited.yaml", TrainConfig)
    paper = TrainConfig()
    for name in ("beta", "lookahead_steps", "epochs", "lr", "momentum", "weight_decay", "meta_lr", "meta_weight_decay"):
        assert getattr(config, name) == getattr(paper, name)
    assert (config.source.model, config.source.num_classes, config.target.model) == ("l2tww_resnet32", 200, "vgg9bn")
    assert (config.data.dataset, config.data.batch_size, config.data.augment) == ("imagefolder", 128, "crop_flip")


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(pairs=["0:1", "1:2"], lr=1e-5, data=DataConfig(classes=[1, 2]), label="a: b # c"),
        CompareConfig(methods=["fm-single"], seeds=[7], pretrain=PretrainConfig(epochs=3)),
        TrainConfig(sources={"a": SourceConfig("x", normalization=[[0.5], [0.25]]), "b": SourceConfig(image_size=9)}),
    ],
)
def test_a_written_configuration_reads_back(tmp_path, config):
    write_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml", type(config)) == config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 0}, "epochs is 0, it must be at least 1"),
        ({"lookahead_steps": -1}, "lookahead_steps is -1"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"weight_decay": -1e-4}, "weight_decay is -0.0001"),
        ({"lr": 0.0}, "lr is 0.0, it must be a number above 0"),
        ({"meta_lr": float("inf")}, "meta_lr is inf"),
        ({"meta_lr": 1e38}, r"meta_lr is 1e\+38, it must be a number above 0 and at most 1e\+30"),
        ({"beta": 1e38}, r"beta is 1e\+38, it must be a number of at least 0 and at most 1e\+30"),
        ({"threads": 0}, "threads is 0, it must be from 1 to 1024"),
        ({"momentum": 1.0}, "momentum is 1.0, it must be at least 0 and below 1"),
        ({"momentum": 0.0, "nesterov": True}, "nesterov needs a momentum"),
        ({"hypergradient": "exakt"}, "hypergradient is 'exakt', it must be one of exact, "),
        ({"lambda_start": "zero"}, "lambda_start is 'zero', it must be one of random, even"),
        ({"backend": "gpu"}, "backend is 'gpu', it must be one of auto, "),
        ({"pretrain": PretrainConfig(epochs=-1)}, "pretrain.epochs is -1"),
        ({"out": ""}, "out is empty, it must be a folder"),
        ({"source": SourceConfig(checkpoint="")}, r"source\.checkpoint is empty, it must be a file, default or null"),
        ({"pretrain": PretrainConfig(epochs=1, lr=0.0)}, r"^pretrain\.lr is 0\.0, it must be a number above 0"),
        ({"pretrain": PretrainConfig(epochs=1, weight_decay=-1.0)}, r"^pretrain\.weight_decay is -1\.0, it must be"),
        ({"pretrain": PretrainConfig(epochs=10**7)}, r"^pretrain\.epochs is 10000000, it must be at most"),
    ],
)
def test_values_out_of_range_are_named(changes, said):
    with pytest.raises(L2TFastError, match=said):
        dataclasses.replace(TrainConfig(), **changes).check()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sources": {}}, "sources is empty, it must name at least one"),
        ({"sources": {"a:b": SourceConfig()}}, "sources: 'a:b' is no name for a source, take letters"),
        ({"sources": {"a/b": SourceConfig()}}, "'a/b' is no name"),
        ({"sources": {"a": SourceConfig()}, "source": SourceConfig("resnet8")}, "source and sources are both set"),
        ({"sources": {"a": SourceConfig()}, "pretrain": PretrainConfig(epochs=1)}, "pretrain makes a single source"),
        ({"sources": {"a": SourceConfig(image_size=0)}}, "sources.a.image_size is 0, it must be at least 1"),
        (
            {"pretrain": PretrainConfig(epochs=1, data=DataConfig(augment="flip"))},
            "pretrain.data.augment is 'flip', it must be one of none, crop",
        ),
        ({"source": SourceConfig(num_classes=0)}, "source.num_classes is 0"),
        (
            {"source": SourceConfig(normalization="tiny")},
            "source.normalization is 'tiny', it must be imagenet, data or",
        ),
        ({"source": SourceConfig(normalization=[[0.5], [0.0]])}, "every std above 0"),
    ],
)
def test_mistakes_about_sources_are_named(changes, said):
    with pytest.raises(L2TFastError, match=said):
        dataclasses.replace(TrainConfig(), **changes).check()


def test_sources_by_flags_alone(tmp_path):
    (tmp_path / "config.yaml").write_text("method: fm\n")
    flags = ["--sources.a.model", "resnet20", "--sources.a.unit_rms=true", "--sources.b.c.image_size", "64"]
    parser = new_parser()
    add_config_options(parser, TrainConfig)
    config = to_config(parse(parser, ["--config", str(tmp_path / "config.yaml"), *flags]), TrainConfig)
    assert config.sources == {"a": SourceConfig("resnet20", unit_rms=True), "b.c": SourceConfig(image_size=64)}
    with pytest.raises(L2TFastError, match="unknown key modle below sources, did you mean model"):
        parse(parser, ["--sources.a.modle", "resnet20"])


def test_a_group_takes_no_file(tmp_path):
    parser = new_parser()
    add_config_options(parser, TrainConfig)
    (tmp_path / "data.yaml").write_text("batch_size: 3\n")
    for flag in ([f"--data={tmp_path / 'data.yaml'}"], ["--data", str(tmp_path / "data.yaml")]):
        with pytest.raises(L2TFastError, match="--data takes no value, its keys do"):
            parse(parser, flag)


def test_a_file_holds_one_source_or_several_not_both(tmp_path):
    write_config(TrainConfig(), tmp_path / "one.yaml")
    write_config(TrainConfig(sources={"a": SourceConfig()}), tmp_path / "several.yaml")
    assert "sources" not in yaml.safe_load((tmp_path / "one.yaml").read_text())
    assert "source" not in yaml.safe_load((tmp_path / "several.yaml").read_text())


def test_of_files_and_options_what_stands_further_right_counts(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("epochs: 7\n")
    parser = new_parser()
    add_config_options(parser, TrainConfig)
    file, flag = ["--config", str(path)], ["--epochs", "2"]
    assert [parse(parser, given).epochs for given in (file + flag, flag + file)] == [2, 7]


def test_folders():
    assert TrainConfig(method="fm", seed=3).folder() == Path("runs/fm-seed3")
    assert TrainConfig(out="here").folder() == Path("here")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"epochs: null\n", "epochs is null, it needs a value"),
        (b"data:\n  batch_size: null\n", "data.batch_size is null"),
        (b"sources:\n  a:\n    model: null\n", "sources.a.model is null, it needs a value"),
        (b"sources:\n  a: {modell: x}\n", "unknown key modell below sources, did you mean model?"),
        (b"sources:\n  a: {x: 1}\n", "unknown key x below sources, a source has model, checkpoint"),
        (b"sources:\n  a: {image_size: big}\n", "sources: image_size cannot be big, see --source.image_size in --help"),
        (b"sources:\n  a: {model: 3}\n", "sources: model cannot be 3, see --source.model"),
        (b"sources:\n- model: x\n", "sources must be names, each with keys of a source below it: model"),
        (b"", "is empty, it must hold keys and their values"),
        (b"source: 3\n", "config.yaml: source is '3', it must have keys below it"),
        (b"sources: 3\n", "config.yaml: sources is '3', it must have keys below it"),
        (
            b"lr: 0.1\ndata:\n# all: that is below it\n",
            "config.yaml: data is null, it must have keys below it, or be left",
        ),
        (b"pretrain:\n  data:\n", "config.yaml: pretrain.data is null, it must have keys below it, or be left out"),
        (b"sources:\n  a:\n", "config.yaml: sources.a is null, it must have keys below it, or be left out"),
        (b"out: \xff\xfe\n", "not text in UTF-8"),
    ],
)
def test_files_that_are_no_configuration(tmp_path, content, message):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(L2TFastError, match=message):
        read_config(path, TrainConfig)
