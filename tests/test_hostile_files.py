"""Files made to harm: whatever they hold, none of it runs or fills the memory, and one sentence says what it is."""

import csv
import json
import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import l2t_fast
from l2t_fast.cli import main
from l2t_fast.config import SourceConfig, TargetConfig, TrainConfig, write_config
from l2t_fast.data import DataConfig
from l2t_fast.data.images import FileImages
from l2t_fast.errors import L2TFastError, one_sentence
from l2t_fast.files import check_archive, read_arrays
from l2t_fast.models import build_model, load_weights
from l2t_fast.models.weights import read_checkpoint
from l2t_fast.parsing import read_config
from l2t_fast.report.folder import read_comparison
from l2t_fast.transfer import TrainingProgress, run
from l2t_fast.transfer.checkpoint import load_checkpoint
from l2t_fast.transfer.same_options import decisive_options
from l2t_fast.yaml_files import LARGEST, parse_yaml, read_yaml

PACKAGE = Path(l2t_fast.__file__).parent


# ---- the package's own calls -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "allowed"),
    [
        (r"torch\.load\(", "weights_only=True"),
        (r"np\.load\(", "allow_pickle=False"),
        (r"yaml\.load\(", None),
        (r"yaml\.(unsafe|full)_load\(", None),
        (r"yaml\.safe_load\(", None),
        (r"\bpickle\.loads?\(|Unpickler\(|\bmarshal\.|\bshelve\.|\bjoblib\b", None),
        (r"\b(eval|exec)\(", None),
        (r"os\.system\(|shell=True", None),
        (r"Image\.open\(", "formats=KINDS"),
    ],
)
def test_no_call_that_runs_what_a_file_holds(call, allowed):
    for path in PACKAGE.rglob("*.py"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if re.search(call, line.partition("#")[0]) and not re.search(r"\.eval\(", line):
                fine = (allowed is not None and allowed in line) or (path.name, call) == SAFE
                assert fine, f"{path}:{number}: {line.strip()}"


#: Where it stands behind a look at the text.
SAFE = ("yaml_files.py", r"yaml\.safe_load\(")


# ---- configurations --------------------------------------------------------------------------------------------------

LAUGHS = "pairs: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{key}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for key, name, before in zip("labcdefgh", "bcdefghij", "abcdefghi", strict=True)
)
CONFIGURATIONS = {
    "a tag of Python": ("label: !!python/object/apply:os.system ['touch made']", "could not determine a constructor"),
    "aliases of aliases": (LAUGHS, r"has an alias \(\*a\) inside of an anchor"),
    "aliases of a long list": (
        f"label: &a [{'x, ' * 4000}]\npairs: [{'*a, ' * 4000}]",
        "is larger than 1 MiB when its aliases are written out",
    ),
    "an alias of itself": ("pairs: &a [*a]", r"has an alias \(\*a\) inside of an anchor"),
    "brackets without end": ("label: " + "[" * 30_000, "is nested deeper than 50 levels"),
    "more than any configuration": ("# " + "x" * LARGEST, "is larger than 1 MiB"),
    "a number as text": (
        'epochs: "1e9"',
        "epochs is 1000000000.0, it must be a whole number|epochs: 1000000000.0 is not what it takes",
    ),
    "more epochs than a life": (f"epochs: {10**30}", "it must be at most 1000000"),
    "a zero byte": ("epochs: 1\0", "not YAML of plain values: unacceptable character #x0000"),
    "a terminal's commands": ('"\\x1b[2Jepochs": 1', r"unknown key \\x1b\[2Jepochs"),
    "a date": ("seed: 2020-01-01", "seed is 2020-01-01, it must be a whole number"),
    "not a number": ("lr: .nan", "lr is nan"),
    "a file where keys must stand": (
        "data: /etc/passwd",
        "config.yaml: data is '/etc/passwd', it must have keys below",
    ),
    "a file below a group": (
        "pretrain:\n  data: more.yaml",
        "pretrain.data is 'more.yaml', it must have keys below it",
    ),
    "a file for a source": ("sources:\n  a: more.yaml", "sources.a is 'more.yaml', it must have keys below it"),
    "a hundred thousand threads": ("threads: 100000", "threads is 100000, it must be from 1 to 1024"),
    "a key twice": ("lr: 1e-3\nlr: 2", "config.yaml has the key lr twice, again in line 2: keep one of them"),
    "a key twice in a list": (
        "data:\n  classes: [1, 2]\npairs:\n- {a: 1, 'a': 2}",
        "has the key a twice, again in line 4",
    ),
    "another configuration": ("config: /etc/passwd", "config.yaml: unknown key config"),
    "a list": ("- 1\n- 2", "holds a list, it must hold keys and their values"),
}


@pytest.mark.parametrize("what", CONFIGURATIONS)
def test_a_hostile_configuration(tmp_path, monkeypatch, what):
    text, said = CONFIGURATIONS[what]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(L2TFastError) as raised:
        read_config(tmp_path / "config.yaml", TrainConfig).check()
    sentence = one_sentence(raised.value)
    assert re.search(said, sentence) and sentence.isprintable() and len(sentence) < 500
    assert not (tmp_path / "made").exists()


def test_an_alias_of_plain_values_may_be():
    assert parse_yaml("a: &x [1, 2]\nb: *x\nc: *x", "here") == {"a": [1, 2], "b": [1, 2], "c": [1, 2]}


@pytest.mark.parametrize("content", [b"\xff\xfe", LAUGHS.encode(), b"a: !!python/name:os.system", b"{", b"[" * 5000])
def test_yaml_of_a_run_folder(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(L2TFastError, match=r"config\.yaml"):
        read_yaml(tmp_path / "config.yaml")


# ---- checkpoints -----------------------------------------------------------------------------------------------------


class Runs:
    """Unpickling it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def rewritten(path, change, compression=zipfile.ZIP_STORED):
    """The entries of an archive, name and bytes, changed and written back."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, change(name, content))


def pickled(path, made):
    path.write_bytes(pickle.dumps({"model": Runs(made)}))


def bomb(path, made):
    torch.save({"model": torch.zeros(1 << 20)}, path)
    rewritten(path, lambda name, content: content, zipfile.ZIP_DEFLATED)


def huge(path, made):
    """Claims two hundred million numbers of four."""
    torch.save({"model": torch.zeros(4)}, path)
    claimed = b"J" + (200_000_000).to_bytes(4, "little")
    rewritten(path, lambda name, content: content.replace(b"K\x04", claimed) if name.endswith(".pkl") else content)


def bomb_behind_an_end(path, made):
    """Python's zipfile finds no archive, PyTorch's finds the directory before the end."""
    bomb(path, made)
    path.write_bytes(path.read_bytes() + b"PK\5\6" + bytes(8))


def bomb_of_two_directories(path, made):
    """Python reads the directory that lies before the end, PyTorch the one that the end names."""
    torch.serialization.set_crc32_options(False)  # nothing of the harmless one is looked at
    try:
        torch.save({"model": torch.zeros(4)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(path) as archive:
        start, plain = archive.start_dir, path.read_bytes()
    harmless = plain[start : plain.rindex(b"PK\6\6") if b"PK\6\6" in plain else plain.rindex(b"PK\5\6")]
    bomb(path, made)
    content = path.read_bytes()
    end = content.rindex(b"PK\5\6")
    size = len(harmless).to_bytes(4, "little")  # of a directory that ends where the end begins
    path.write_bytes(content[:end] + harmless + content[end : end + 12] + size + content[end + 16 :])


CHECKPOINTS = {
    "a bomb behind an end": bomb_behind_an_end,
    "a bomb of two directories": bomb_of_two_directories,
    "code": lambda path, made: torch.save({"model": Runs(made)}, path),
    "a bare pickle": pickled,
    "a bomb": bomb,
    "a size it does not have": huge,
    "nothing": lambda path, made: path.write_bytes(b""),
    "text": lambda path, made: path.write_text("model"),
    "an archive of something else": lambda path, made: np.savez(path.open("wb"), a=np.zeros(3)),
    "a list": lambda path, made: torch.save([1, 2], path),
    "a folder": lambda path, made: path.mkdir(),
}


@pytest.mark.parametrize("what", CHECKPOINTS)
def test_a_hostile_checkpoint(tmp_path, what):
    path, made = tmp_path / "last.pt", tmp_path / "made"
    CHECKPOINTS[what](path, made)
    of_run, of_weights = ("it is cut short", "is truncated") if "bomb" in what else ("", "")
    with pytest.raises(L2TFastError, match=rf"last\.pt.*{of_run}"):
        load_checkpoint(path)
    network = build_model("resnet8", 3, in_channels=1)
    with pytest.raises(L2TFastError, match=rf"last\.pt.*{of_weights}"):
        load_weights(network, path)
    assert not made.exists()


def test_archives_of_pytorch_and_of_zip_end_as_they_should(tmp_path):
    path = tmp_path / "last.pt"
    torch.save({"model": torch.zeros(3)}, path)
    check_archive(path)
    rewritten(path, lambda name, content: content)
    check_archive(path)


def test_a_small_file_makes_no_large_network(tmp_path):
    network = build_model("resnet8", 3, in_channels=1)
    weights = network.state_dict()
    *_, last = weights
    torch.save(weights | {last: torch.zeros(1).expand(4_000_000)}, tmp_path / "source.pt")
    with pytest.raises(L2TFastError, match=f"{last} with fewer numbers than its shape says"):
        read_checkpoint(tmp_path / "source.pt")


def test_an_image_of_another_kind_starts_no_program(tmp_path, monkeypatch):
    """PIL would hand PostScript to Ghostscript, whatever the file is called."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/made\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    images = FileImages([str(photo)])
    for look in (images.__getitem__, images.size):
        with pytest.raises(L2TFastError, match=r"photo\.jpg cannot be read: it is none of BMP"):
            look(0)
    assert not (tmp_path / "made").exists()


# ---- the folder of a run ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder and configuration of a run of two epochs, of which the second is to be done again."""
    base = tmp_path_factory.mktemp("hostile")
    torch.manual_seed(7)
    torch.save({"model": build_model("resnet8", 5, in_channels=1).state_dict()}, base / "source.pt")
    config = TrainConfig(
        method="l2t-ww",
        hypergradient="finite_difference",  # compiles nothing
        source=SourceConfig("resnet8", str(base / "source.pt"), num_classes=5),
        target=TargetConfig("vgg5bn"),
        data=DataConfig(classes=[5, 6], per_class=4, batch_size=8),
        epochs=1,
        device="cpu",
        out=str(base / "run"),
    )
    run(config, progress=quiet())
    return config


def quiet():
    return TrainingProgress(Console(quiet=True), epoch_lines=False)


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of that run without its result, and its configuration."""
    shutil.copytree(finished.out, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    return tmp_path / "run", TrainConfig(**{**vars(finished), "out": str(tmp_path / "run")})


def first_weight(state):
    return next(iter(state["model"]))


STATES = {
    "another dtype": (
        lambda s: s["model"].update({first_weight(s): torch.zeros(3, dtype=torch.float64)}),
        "is float64",
    ),
    "another shape": (lambda s: s["model"].update({first_weight(s): torch.zeros(0)}), r"is float32 \(0,\) and not"),
    "NaN": (
        lambda s: s["model"][first_weight(s)].view(-1)[:1].fill_(torch.nan),
        "holds NaN or infinite values in targ",
    ),
    "a name too many": (lambda s: s["model"].update({"x\x1b[2J": torch.zeros(1)}), r"model.x\\x1b\[2J is unknown"),
    "a name too few": (lambda s: s["model"].pop(first_weight(s)), "is missing"),
    "no state": (lambda s: s.clear(), "is missing"),
    "an epoch of text": (lambda s: s.update(epoch="1"), "epoch is a str and not a int"),
    "an epoch to come": (lambda s: s.update(epoch=10**9), "it is of epoch 1000000000, and the run has 1"),
    "a momentum of another shape": (
        lambda s: s["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(1, 2)),
        r"optimizer\.state\.0\.momentum_buffer is float32 \(1, 2\) and not float32",
    ),
    "a momentum of one number": (
        lambda s: s["optimizer"]["state"][0].update(momentum_buffer=torch.tensor(3.0)),
        r"optimizer\.state\.0\.momentum_buffer is float32 \(\) and not float32",
    ),
    "a momentum of text": (
        lambda s: s["optimizer"]["state"][0].update(momentum_buffer="x"),
        r"optimizer\.state\.0\.momentum_buffer is a str and not float32",
    ),
    "a momentum of one number for all": (
        lambda s: s["optimizer"]["state"][0].update(
            momentum_buffer=torch.zeros(1).expand(s["optimizer"]["state"][0]["momentum_buffer"].shape)
        ),
        r"momentum_buffer holds fewer numbers than its shape says",
    ),
    "a sparse momentum": (
        lambda s: s["optimizer"]["state"][0].update(
            momentum_buffer=s["optimizer"]["state"][0]["momentum_buffer"].to_sparse()
        ),
        r"momentum_buffer holds fewer numbers than its shape says",
    ),
    "a NaN momentum": (
        lambda s: s["optimizer"]["state"][0]["momentum_buffer"].fill_(torch.nan),
        r"last\.pt holds NaN or infinite values in optimizer momentum_buffer of parameter 0",
    ),
    "no momenta": (lambda s: s["optimizer"].update(state={}), "optimizer holds no momenta, though steps were made"),
    "no momenta of phi": (
        lambda s: s["method_optimizers"]["meta"].update(state={}),
        "meta holds no momenta, though steps were made",
    ),
    "a mean that is missing": (
        lambda s: s["method_optimizers"]["meta"]["state"][0].pop("exp_avg"),
        r"meta\.state\.0\.exp_avg is missing",
    ),
    "squares below zero": (
        lambda s: s["method_optimizers"]["meta"]["state"][0]["exp_avg_sq"].fill_(-1),
        r"meta\.state\.0\.exp_avg_sq is negative",
    ),
    "steps before the first": (
        lambda s: s["method_optimizers"]["meta"]["state"][0]["step"].fill_(-1),
        r"meta\.state\.0\.step is negative",
    ),
    "a best accuracy that is none": (
        lambda s: s["best"].update(validation_accuracy=float("nan")),
        "its best epoch's numbers are not finite",
    ),
    "other options": (
        lambda s: s["options"].update(beta=7),
        r"last\.pt .* \(it is of a run with beta: 7, here it is 0\.5",
    ),
    "an option of this name": (lambda s: s["options"].update({"\x1b[2J": 1}), r"of a run with \\x1b\[2J: 1, here"),
    "options that are none": (lambda s: s.update(options=3), "its options are no table"),
    "an optimizer that is none": (lambda s: s.update(optimizer=[1]), "optimizer holds no state"),
    "random numbers from elsewhere": (
        lambda s: s["random"]["numpy"].update(keys=torch.zeros(1)),
        r"numpy\.keys is flo",
    ),
    "a best model that is not there": (lambda s: s["best"].update(epoch=0), r"best\.pt is missing or not of epoch 0"),
}


@pytest.mark.parametrize("what", STATES)
def test_a_hostile_state_to_resume_from(copied, what):
    folder, config = copied
    change, said = STATES[what]
    state = load_checkpoint(folder / "checkpoints" / "last.pt")
    change(state)
    torch.save(state, folder / "checkpoints" / "last.pt")
    with pytest.raises(L2TFastError) as raised:
        run(config, resume=True, progress=quiet())
    sentence = one_sentence(raised.value)
    assert re.search(said, sentence) and sentence.isprintable() and len(sentence) < 600


def test_a_state_that_was_cut_short_says_what_to_do(copied):
    folder, config = copied
    last = folder / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:3000])
    with pytest.raises(L2TFastError, match=r"cut short or of another kind: put it back as it was, or remove .*run to"):
        run(config, resume=True, progress=quiet())
    shutil.rmtree(folder)  # as it says
    assert run(config, resume=True, progress=quiet())["epochs"] == config.epochs


BEST = {
    "another shape": (
        lambda s: s["model"].update({first_weight(s): torch.zeros(1)}),
        r"does not fit this run, model\..* is float32 \(1,\) and not float32",
    ),
    "networks missing": (lambda s: s.pop("model"), "does not fit this run, model is nothing and not a table of names"),
    "no names": (lambda s: s.update(method=3), "does not fit this run, method is a int and not a table of names"),
    "NaN": (lambda s: s["model"][first_weight(s)].fill_(torch.nan), "holds NaN or infinite values in target "),
    "another epoch": (lambda s: s.update(epoch=torch.ones(3)), "is missing or not of epoch 1, which was the best"),
    "other options": (
        lambda s: s["options"].update(lr=7),
        "does not fit this run, it is of a run with lr: 7, here it is",
    ),
}


@pytest.mark.parametrize("what", BEST)
def test_a_hostile_best_model_is_seen_before_the_training(finished, tmp_path, what):
    """Where the epoch that it is of is not the last one, whose networks last.pt has."""
    change, said = BEST[what]
    out = tmp_path / "run"
    shutil.copytree(finished.out, out)
    (out / "result.json").unlink()
    config = TrainConfig(**{**vars(finished), "out": str(out), "epochs": 3})
    write_config(config, out / "config.yaml")
    own = {"options": decisive_options(config)}
    state = load_checkpoint(out / "checkpoints" / "last.pt") | own
    torch.save(state | {"epoch": 2}, out / "checkpoints" / "last.pt")
    best = load_checkpoint(out / "checkpoints" / "best.pt") | own
    change(best)
    torch.save(best, out / "checkpoints" / "best.pt")
    before = (out / "metrics.csv").read_text()
    with pytest.raises(L2TFastError) as raised:
        run(config, resume=True, progress=quiet())
    sentence = one_sentence(raised.value)
    assert re.search(rf"best\.pt {said}.*: put it back, or start the run anew with another --out$", sentence)
    assert (out / "metrics.csv").read_text() == before


def test_a_best_model_of_the_last_epoch_is_written_again_whatever_it_holds(copied):
    folder, config = copied
    (folder / "checkpoints" / "best.pt").write_bytes(b"nothing")
    assert run(config, resume=True, progress=quiet())["best_epoch"] == 1
    assert load_checkpoint(folder / "checkpoints" / "best.pt")["epoch"] == 1


def test_hyperparameters_come_from_the_configuration_and_not_from_a_checkpoint(copied):
    folder, config = copied
    state = load_checkpoint(folder / "checkpoints" / "last.pt")
    state["optimizer"]["param_groups"][0] |= {"momentum": float("inf"), "weight_decay": "x", "lr": None}
    torch.save(state, folder / "checkpoints" / "last.pt")
    assert run(config, resume=True, progress=quiet())["epochs"] == 1


#: A number that no float holds, where an accuracy is due.
HUGE = json.dumps(
    {"method": "x", "seed": 0, "best_epoch": 1, "validation_accuracy": 10**400, "test_accuracy": 0, "epochs": 1}
    | {"seconds": 1}
).encode()
TABLES = {
    "result.json": [b"\xff\xfe", b"[]", b"null", b'{"method": 3}', b"[" * 100_000, b'{"best_epoch": 1e999}', HUGE],
    "metrics.csv": [b"\xff", b"epoch\n1\n", b"\x00\x00", b"epoch,step\n\x1b[2J,1\n"],
    "channel_weights.npz": [b"", b"PK\x03\x04 no", b"\x93NUMPY" + b"\xff" * 80],
    "pair_weights.csv": [b"\xff", b"epoch,source_layer,target_layer,mean,std\n1,a,b,x,y\n"],
    "config.yaml": [LAUGHS.encode(), b"\xff", b"a: !!python/name:os.system"],
}


@pytest.mark.parametrize(("name", "content"), [(name, content) for name in TABLES for content in TABLES[name]])
def test_hostile_files_in_a_folder_are_one_sentence(finished, tmp_path, capsys, name, content):
    """For `inspect` and to resume; what a report is made from can be read all the same."""
    shutil.copytree(finished.out, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(content)
    code = main(["inspect", str(tmp_path / "run")])
    shown = capsys.readouterr()
    assert code in (0, 2) and "\x1b" not in shown.out + shown.err
    assert len(shown.err.splitlines()) == (1 if code else 0)
    assert read_comparison(tmp_path / "run").runs
    try:
        run(TrainConfig(**{**vars(finished), "out": str(tmp_path / "run")}), resume=True, progress=quiet())
    except L2TFastError as error:
        assert name in str(error)


def test_a_result_that_is_no_json_says_what_to_do(finished, tmp_path):
    shutil.copytree(finished.out, tmp_path / "run")
    config, result = TrainConfig(**{**vars(finished), "out": str(tmp_path / "run")}), tmp_path / "run" / "result.json"
    before = json.loads(result.read_text())
    result.write_text("{no")
    with pytest.raises(L2TFastError, match=r"result\.json is damaged: it is no JSON \(.*\); remove it to run again"):
        run(config, resume=True, progress=quiet())
    result.unlink()  # as it says
    assert run(config, resume=True, progress=quiet())["test_accuracy"] == before["test_accuracy"]


def test_tables_of_other_pairs_are_one_sentence(finished, tmp_path, capsys):
    shutil.copytree(finished.out, tmp_path / "run")
    table = tmp_path / "run" / "pair_weights.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(line for line in lines if not line.startswith("1,")))  # lambda of the best epoch
    assert main(["inspect", str(tmp_path / "run")]) == 0
    np.savez(tmp_path / "run" / "channel_weights.npz", **{"a->b": np.ones(3, np.float32)})
    assert main(["inspect", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    table.write_text("\n".join(lines))
    assert main(["inspect", str(tmp_path / "run")]) == 2
    assert "damaged: pair_weights.csv and channel_weights.npz are of other pairs" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["log.txt", "metrics.csv", "pair_weights.csv", "checkpoints/last.pt.tmp"])
def test_a_link_in_a_folder_leads_to_no_other_file(copied, tmp_path, name):
    """Neither where the run goes on nor where it begins."""
    folder, config = copied
    (folder / "result.json").unlink(missing_ok=True)
    other = tmp_path / "precious"
    other.write_text("mine")
    for _ in range(2):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(other)
        try:
            run(config, resume=True, progress=quiet())
        except L2TFastError as error:
            assert f"{name} could not be written" in str(error) or f"{name} lacks" in str(error)
        assert other.read_text() == "mine"
        for checkpoint in ("last.pt", "best.pt"):
            (folder / "checkpoints" / checkpoint).unlink(missing_ok=True)
        (folder / "result.json").unlink(missing_ok=True)


def test_keys_that_are_no_text_are_another_configuration(copied):
    folder, config = copied
    with open(folder / "config.yaml", "a") as file:
        file.write("1: 2\n")
    with pytest.raises(L2TFastError, match="was made with 1: 2, but now 1 is None"):
        run(config, resume=True, progress=quiet())


def test_markup_and_control_characters_in_a_result_are_only_text(finished, tmp_path, capsys):
    shutil.copytree(finished.out, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    (tmp_path / "run" / "result.json").write_text(json.dumps(result | {"method": "[/red][bold]x\x1b[2J\nerror"}))
    assert main(["inspect", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "[/red][bold]x" in shown and "\x1b" not in shown


def test_names_with_commas_survive_a_resume(copied):
    """A layer's name may hold what separates a table's cells."""
    folder, config = copied
    path = folder / "pair_weights.csv"
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    rows[1][1] = 'a,"b"\nc'
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    run(config, resume=True, progress=quiet())
    with open(path, newline="") as file:
        assert list(csv.reader(file)) == rows


def test_arrays_that_would_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("l2t_fast.files.LARGEST_ARRAYS", 1 << 20)
    np.savez_compressed(tmp_path / "channels.npz", a=np.zeros(1 << 18))
    assert (tmp_path / "channels.npz").stat().st_size < 1 << 14
    with pytest.raises(L2TFastError, match="its arrays take 2 MiB"):
        read_arrays(tmp_path / "channels.npz")
