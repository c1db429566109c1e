"""Methods, networks and data sets of somebody's own: registered in Python, and by files that --plugin names."""

import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from l2t_fast.cli import main
from l2t_fast.data import register_dataset
from l2t_fast.errors import L2TFastError
from l2t_fast.models import build_model, layer_names, list_models, register_network
from l2t_fast.plugins import load_plugin
from l2t_fast.transfer import METHODS, Method, register_method
from l2t_fast.transfer.methods import find_method

METHOD = """
from l2t_fast.transfer import Method, register_method
{more}

@register_method
class Own(Method):
    name = "own"
    needs_source = runs_source = False
    default_pairs = None
"""


def write(folder, name, more=""):
    path = folder / name
    path.write_text(METHOD.format(more=more))
    return path


def test_a_file_that_the_command_names_brings_a_method(tmp_path, registries):
    plugin = write(tmp_path, "l2t_own_method.py", "import l2t_own_neighbour")
    (tmp_path / "l2t_own_neighbour.py").write_text("")
    run = ["train", "--method", "own", "--epochs", "1", "--out", str(tmp_path / "run")]
    assert main([*run, "--plugin", str(plugin)]) == 0
    assert main(["inspect", f"--plugin={plugin}", str(tmp_path / "run")]) == 0  # once more in one process
    assert METHODS["own"].__module__ == "l2t_own_method"


def test_without_it_the_name_is_unknown(tmp_path, capsys):
    assert main(["train", "--method", "own", "--out", str(tmp_path / "run")]) == 2
    assert re.search(r"no method 'own': .*, and what --plugin FILE brings\n$", capsys.readouterr().err)


def test_a_file_of_a_configuration_does_not_name_it(tmp_path, capsys):
    """A YAML file from somebody else runs no code."""
    (tmp_path / "config.yaml").write_text(f"plugin: {write(tmp_path, 'l2t_own_method.py')}\n")
    assert main(["train", "--config", str(tmp_path / "config.yaml")]) == 2
    assert "unknown key plugin" in capsys.readouterr().err
    assert "l2t_own_method" not in sys.modules


def test_a_module_by_its_name(tmp_path, monkeypatch, registries):
    write(tmp_path, "l2t_own_module.py")
    monkeypatch.syspath_prepend(tmp_path)
    load_plugin("l2t_own_module")
    assert find_method("own").__module__ == "l2t_own_module"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--plugin"], "--plugin is empty, it must name a file that ends in .py, or a module"),
        (["--plugin="], "--plugin is empty"),
        (["--plugin", "missing.py"], "missing.py: there is no such file"),
        (["--plugin", "no_such_module"], "--plugin no_such_module: no module of that name is installed"),
        (["--plugin", "l2t_fast.no_such"], "--plugin l2t_fast.no_such: no module of that name is installed"),
        (["--plugin", "./folder"], "--plugin ./folder: no module of that name is installed"),
        (["--plugin", ".."], "--plugin ..: no module of that name is installed"),
    ],
)
def test_what_is_not_there_is_told(capsys, arguments, told):
    assert main(["env", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_a_file_with_the_name_of_another_module(tmp_path, registries):
    with pytest.raises(L2TFastError, match=r"torch\.py: another module is called torch \(.*\), rename the file"):
        load_plugin(str(write(tmp_path, "torch.py")))
    with pytest.raises(L2TFastError, match=r"sys\.py: another module is called sys \(built in\), rename the file"):
        load_plugin(str(write(tmp_path, "sys.py")))


def test_a_file_with_the_name_of_a_module_that_is_imported_later(tmp_path, monkeypatch, registries):
    installed, other = tmp_path / "installed", tmp_path / "other"
    for folder in (installed, other):
        folder.mkdir()
        write(folder, "l2t_own_name.py")
    monkeypatch.syspath_prepend(installed)
    with pytest.raises(L2TFastError, match=r"another module is called l2t_own_name \(.*installed.*\), rename the file"):
        load_plugin(str(other / "l2t_own_name.py"))
    load_plugin(str(installed / "l2t_own_name.py"))
    assert find_method("own").__module__ == "l2t_own_name"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("import no_such_module", ModuleNotFoundError),
        ("1 / 0", ZeroDivisionError),
        ("raise ValueError('twice')", ValueError),
    ],
)
def test_its_own_errors_are_pythons(tmp_path, monkeypatch, registries, line, error):
    plugin = write(tmp_path, "l2t_own_broken.py", line)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(error):
        load_plugin(str(plugin))
    assert "l2t_own_broken" not in sys.modules
    with pytest.raises(error):
        load_plugin("l2t_own_broken")


@pytest.mark.parametrize(
    ("line", "told"), [("exit()", "imported: what"), ("exit('no data')", r"imported \(no data\): ")]
)
def test_one_that_ends_the_program_is_no_success(tmp_path, registries, capsys, line, told):
    plugin = write(tmp_path, "l2t_own_script.py", f"import sys; sys.{line}")
    assert main(["env", "--plugin", str(plugin)]) == 2
    assert re.search(rf"--plugin \S+l2t_own_script\.py ends the program while it is {told}", capsys.readouterr().err)


def test_the_command_in_a_process_of_its_own(tmp_path):
    plugin = write(tmp_path, "l2t_own_method.py", "print('imported', __name__)")
    command = [sys.executable, "-m", "l2t_fast.cli", "env", "--plugin", str(plugin)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("l2t_fast:")  # which may be a table: what a plugin prints is no part of it
    assert shown.stderr == "imported l2t_own_method\n"


def make_method(name="own"):
    class Own(Method):
        needs_source = runs_source = False

    if name is not None:
        Own.name = name
    return Own


def test_a_method_that_is_defined_anew_replaces_itself(registries):
    first, second = register_method(make_method()), register_method(make_method())
    assert first is not second and find_method("own") is second


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("fm", r"called 'fm', as l2t_fast\.transfer\.methods\.feature_matching\.FeatureMatchingMethod is: rename one"),
        ("a/b", "called 'a/b': its class needs a name of letters, digits"),
        ("", "called '': its class needs a name"),
        (None, "called None: its class needs a name"),
        (7, "called 7: its class needs a name"),
    ],
)
def test_a_method_has_a_name_of_its_own_that_a_folder_can_have(name, told):
    before = dict(METHODS)
    with pytest.raises(ValueError, match=told):
        register_method(make_method(name))
    assert before == METHODS


def test_a_derived_method_needs_a_name_of_its_own():
    with pytest.raises(ValueError, match="called None"):
        register_method(type("Derived", (METHODS["fm"],), {}))


def test_what_is_no_method():
    for item in (METHODS["fm"].__init__, object, "own"):
        with pytest.raises(TypeError, match=r"takes a subclass of l2t_fast\.transfer\.Method, not"):
            register_method(item)


def test_a_network_by_name(registries):
    def build(num_classes, in_channels=3, layers=None):
        return build_model("resnet8", num_classes, in_channels=in_channels, layers=layers)

    register_network("own", build)
    register_network("own", build)
    assert "own" in list_models() and layer_names("own") == layer_names("resnet8")
    logits, maps = build_model("own", 5, layers=["layer2.0"])(torch.zeros(2, 3, 8, 8))
    assert logits.shape == (2, 5) and len(maps) == 1
    for name in ("resnet8", "vgg9bn", "torchvision:resnet18", "timm:own", "efficientnet-lite0"):
        with pytest.raises(ValueError, match=f"called '{name}'"):
            register_network(name, build)


def test_a_network_without_feature_maps(registries):
    for made in (nn.Linear(2, 2), None):
        register_network("own", lambda *given, made=made: made)
        with pytest.raises(
            L2TFastError, match=rf"own is {type(made).__name__} without feature maps: its function must"
        ):
            build_model("own", 2)


def test_a_data_set_by_name(registries):
    def read(folder):
        raise AssertionError

    for in_folder in (True, False):
        for name in ("digits", "cifar10", "imagefolder"):
            with pytest.raises(ValueError, match=f"{name}'"):
                register_dataset(name, read, in_folder=in_folder)
    register_dataset("own", read)
    with pytest.raises(ValueError, match="there is a data set 'own' already"):
        register_dataset("own", read, in_folder=False)


@pytest.mark.parametrize("register", [register_network, register_dataset])
def test_arguments_in_the_wrong_order(register):
    with pytest.raises(TypeError, match="takes a name first, not"):
        register(len, "own")
    with pytest.raises(TypeError, match="takes a name first, not ''"):
        register("", len)
    with pytest.raises(TypeError, match="takes a function for 'own', not 3"):
        register("own", 3)
