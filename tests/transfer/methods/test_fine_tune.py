import pytest
import torch

from l2t_fast.config import SourceConfig, TargetConfig
from l2t_fast.errors import L2TFastError
from l2t_fast.models import build_model
from l2t_fast.transfer import Trainer, run


def test_the_target_starts_from_the_source_but_for_the_head(make_config, quiet, source_checkpoint):
    source = torch.load(source_checkpoint)["model"]
    trainer = Trainer(make_config(method="fine-tune", target=TargetConfig("resnet8")), quiet)
    scratch = Trainer(make_config(method="scratch", target=TargetConfig("resnet8")), quiet)
    for name, value in trainer.target.state_dict().items():
        start = scratch.target.state_dict() if name.startswith(("linear", "fc")) else source
        assert torch.equal(value, start[name]), name
    assert trainer.pairs == [] and not list(trainer.method.parameters())


def test_with_as_many_classes_the_head_comes_along(make_config, quiet, source_checkpoint):
    source = torch.load(source_checkpoint)["model"]
    data = {"classes": [5, 6, 7, 8, 9]}
    trainer = Trainer(make_config(method="fine-tune", target=TargetConfig("resnet8"), data=data), quiet)
    assert all(torch.equal(value, source[name]) for name, value in trainer.target.state_dict().items())


def test_networks_whose_names_have_a_version_start_from_the_source(make_config, quiet, tmp_path):
    model = "torchvision:mnasnet0_5"
    weights = build_model(model, 5, in_channels=1).state_dict()
    torch.save(weights, tmp_path / "a.pt")
    source, data = SourceConfig(model, str(tmp_path / "a.pt")), {"classes": [5, 6, 7, 8, 9]}
    trainer = Trainer(make_config(method="fine-tune", source=source, target=TargetConfig(model), data=data), quiet)
    assert all(torch.equal(value, weights[name]) for name, value in trainer.target.state_dict().items())


def test_the_log_says_where_the_source_saw_other_images(make_config, quiet, source_checkpoint):
    for normalization, noted in ((None, False), ([[0.5], [2.0]], True)):
        source = SourceConfig("resnet8", str(source_checkpoint), num_classes=5, normalization=normalization)
        trainer = Trainer(make_config(method="fine-tune", source=source, target=TargetConfig("resnet8")), quiet)
        assert bool(trainer.method.notes) == noted
    trainer.fit()
    assert "weights meet values that they were not trained with" in trainer.folder.log_file.read_text()


def test_the_source_does_not_run_while_training(make_config, quiet):
    trainer = Trainer(make_config(method="fine-tune", target=TargetConfig("resnet8"), epochs=1), quiet)
    passes = []
    trainer.source.networks[0].register_forward_hook(lambda *_: passes.append(1))
    assert trainer.fit()["pairs"] == [] and not passes


def test_of_several_sources_the_one_that_fits_is_taken(make_config, quiet, source_checkpoint, tmp_path):
    torch.save(build_model("vgg5bn", 3, in_channels=1).state_dict(), tmp_path / "vgg.pt")
    sources = {
        "resnet": SourceConfig("resnet8", str(source_checkpoint)),
        "vgg": SourceConfig("vgg5bn", str(tmp_path / "vgg.pt")),
    }
    for target, index in (("resnet8", 0), ("vgg5bn", 1)):
        config = make_config(method="fine-tune", source=SourceConfig(), sources=sources, target=TargetConfig(target))
        trainer = Trainer(config, quiet)
        wanted = trainer.source.networks[index].state_dict()
        name = next(iter(wanted))
        assert torch.equal(trainer.target.state_dict()[name], wanted[name])


def test_other_architectures_are_refused_in_one_sentence(make_config, quiet):
    with pytest.raises(L2TFastError, match=r"only 0.0% of the weights of vgg5bn .* set target.model to the source's"):
        run(make_config(method="fine-tune"), progress=quiet)
    with pytest.raises(L2TFastError, match=r"only \d+\.\d% of the weights of resnet20 have a counterpart"):
        run(make_config(method="fine-tune", target=TargetConfig("resnet20")), progress=quiet)
