"""The command line, in this process where nothing is killed, else in one of its own."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import l2t_fast
from l2t_fast import cli
from l2t_fast.bench.cli import default_rows
from l2t_fast.cli import main
from l2t_fast.config import CompareConfig, TrainConfig, embedded_config
from l2t_fast.data import DataConfig
from l2t_fast.errors import L2TFastError
from l2t_fast.models import build_model
from l2t_fast.parsing import read_config, to_config
from l2t_fast.transfer import METHODS
from l2t_fast.transfer.checkpoint import load_checkpoint
from l2t_fast.transfer.run_folder import METRICS, RunFolder
from l2t_fast.transfer.trainer import Trainer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("source") / "resnet8.pt"
    torch.save(build_model("resnet8", 5, in_channels=1).state_dict(), path)
    return path


@pytest.fixture
def config(tmp_path, checkpoint):
    """A YAML file of a tiny run."""
    content = {
        "source": {"model": "resnet8", "checkpoint": str(checkpoint), "num_classes": 5},
        "target": {"model": "vgg5bn"},
        "data": {"dataset": "digits", "classes": [5, 6], "per_class": 8, "batch_size": 8},
        "epochs": 1,
        "device": "cpu",
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def train(config, tmp_path):
    """Call `l2t-fast train` with the tiny file and more arguments."""
    return lambda *more: main(["train", "--config", str(config), "--out", str(tmp_path / "run"), *more])


def assert_one_sentence(capsys, *parts):
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err
    for part in parts:
        assert part in captured.err


def test_train_then_inspect(train, tmp_path, capsys):
    assert train("--method", "l2t-ww", "--seed", "3", "--epochs", "2") == 0
    out = capsys.readouterr().out
    assert out.count("epoch 1/2") == 1 and out.count("epoch 2/2") == 1
    assert "l2t-ww: test accuracy" in out
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (saved["method"], saved["seed"], saved["epochs"]) == ("l2t-ww", 3, 2)

    assert main(["inspect", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    for part in ("l2t-ww, seed 3", "test accuracy", "lambda", "layer1.0->features.2"):
        assert part in shown


def test_train_again_from_the_run_s_own_configuration(train, tmp_path, capsys):
    assert train("--method", "scratch") == 0
    again = ["train", "--config", str(tmp_path / "run" / "config.yaml")]
    assert main([*again, "--resume"]) == 0
    assert "is finished already" in capsys.readouterr().out
    assert main(again) == 2
    assert_one_sentence(capsys, "already holds a run: continue it with --resume, or name another folder with --out")


def test_resume_says_where_there_is_nothing_to_continue(train, tmp_path, capsys):
    said = f"{tmp_path / 'run'} holds no run to continue: one begins there\n"
    assert train("--method", "scratch", "--resume") == 0
    out = capsys.readouterr().out
    assert out.startswith(said) and "epoch 1/1" in out
    assert train("--method", "scratch", "--resume") == 0
    assert said not in capsys.readouterr().out
    for name in ("result.json", "checkpoints/last.pt"):
        (tmp_path / "run" / name).unlink()
    assert train("--method", "scratch", "--resume") == 2  # best.pt is left, and nothing begins
    assert said not in capsys.readouterr().out


def test_compare_prints_a_table_and_skips_what_is_done(config, tmp_path, capsys):
    command = ["compare", "--config", str(config), "--out", str(tmp_path / "all")]
    command += ["--methods", "[scratch, fm-single]", "--seeds", "[4]"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "scratch seed 4: test" in out and "report.html" in out
    assert main(command) == 0
    assert capsys.readouterr().out.count("done before, skipped") == 2
    assert main(["inspect", str(tmp_path / "all")]) == 0
    assert (tmp_path / "all" / "runs" / "fm-single-seed4" / "result.json").exists()


def test_compare_ends_with_two_and_a_sentence_where_a_run_failed(config, tmp_path, monkeypatch, capsys):
    train_batch = Trainer.train_batch

    def fails(trainer, *given):
        if trainer.config.method == "fm":
            raise MemoryError
        return train_batch(trainer, *given)

    monkeypatch.setattr(Trainer, "train_batch", fails)
    command = ["compare", "--config", str(config), "--out", str(tmp_path / "all"), "--seeds", "[4]"]
    assert main([*command, "--methods", "[fm, scratch]", "--per_class", "[6]"]) == 2
    captured = capsys.readouterr()
    assert captured.err == (
        "error: fm-n6-seed4: there is too little memory for this, lower data.batch_size or "
        "data.image_size, or set data.cache to false\n"
    )
    assert "scratch N=6 seed 4: test" in captured.out and "report.html" in captured.out


def test_of_epochs_with_the_same_accuracy_the_one_with_the_lower_loss_is_shown(tmp_path, capsys):
    """As the trainer chooses, also where a run has no result yet."""
    for epoch, loss in ((1, 2.0), (2, 1.0), (3, 3.0)):
        row = dict.fromkeys(METRICS, 0.0) | {"epoch": epoch, "validation_accuracy": 0.5, "validation_loss": loss}
        RunFolder(tmp_path).add_metrics(row)
    assert main(["inspect", str(tmp_path)]) == 0
    assert "50.00% (epoch 2)" in capsys.readouterr().out


def test_a_label_breaks_no_line(train, capsys):
    assert train("--method", "scratch", "--label", "two\nlines") == 0
    assert "\ntwo\\nlines: test accuracy" in capsys.readouterr().out


def test_one_method_alone_is_shown_as_a_list(capsys):
    assert main(["compare", "--methods", "fm"]) == 2
    assert capsys.readouterr().err == "error: methods takes a list, --methods '[fm]'\n"


def test_env(capsys):
    assert main(["env"]) == 0
    assert torch.__version__ in capsys.readouterr().out


def test_the_plots_of_a_notebook_that_starts_it_are_not_its_own():
    """A notebook names its backend to all it starts, an installation without that backend too."""
    environment = os.environ | {"MPLBACKEND": "module://not_installed.here"}
    ran = subprocess.run([sys.executable, "-m", "l2t_fast", "--version"], env=environment, capture_output=True)
    assert ran.returncode == 0, ran.stderr


def test_version(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert (left.value.code, capsys.readouterr().out) == (0, f"l2t-fast {l2t_fast.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--epohs", "3"], "unknown option --epohs, did you mean --epochs?"),
        (["--data.per_clas=3"], "unknown option --data.per_clas, did you mean --data.per_class?"),
        (["--epochs", "many"], "epochs is many, it must be a whole number"),
        (["--epochs", "1e3"], "epochs is 1000.0, it must be a whole number"),
        (["--beta", "null"], "beta is null, it must be a number"),
        (["--config", ""], "--config is empty, it must name a YAML file"),
        (["--config="], "--config is empty, it must name a YAML file"),
        (["--sources", "{}"], "--sources takes no value, its keys do: --sources.NAME.KEY"),
        (["--beta", "nan"], "beta is nan, it must be a number"),
        (["--target.layers", "features.2"], "target.layers takes a list, --target.layers '[features.2]'"),
        (["--target.layers", "[features.2,"], "target.layers takes a list, --target.layers '[features.2]'"),
        (["--data.classes", "[5, a]"], "data.classes is [5, 'a'], it must be a list of whole numbers, or null"),
        (["--data.image_size", "big"], "data.image_size is big, it must be a whole number, or null"),
        (["--data.cache", "maybe"], "data.cache is maybe, it must be true or false, or null"),
        (["--keep_graphs", "1"], "keep_graphs is 1, it must be true or false"),
        (["--data.seed", "1.5"], "data.seed is 1.5, it must be a whole number"),
        (["--method", "l2tww"], "there is no method 'l2tww': did you mean l2t-ww?"),
        (["--method", "LwF"], "there is no method 'LwF': did you mean lwf?"),
        (["--method", "fm-onetoone"], "there is no method 'fm-onetoone': did you mean fm-one-to-one?"),
        (["--method", "fm-single"], "there is no method 'fm-single': fm-single is fm with pairs: single; known are"),
        (["--lr", "-1"], "lr is -1.0, it must be a number above 0"),
        (["--pairs", "[]"], "pairs is empty"),
        (["--seed", "99999999999999999999"], "seed is 99999999999999999999, it must be at least 0 and below 2^31"),
        (["--target.model", "torchvision:vgg11"], "torchvision:vgg11 cannot take images of 8x8 pixels"),
        (["--pairs", "7:0"], "asks for source map 7, the source has maps 0 to 2"),
        (["--pairs", "layer1.0:features.99"], "the target has no feature map 'features.99'"),
        (["--target.layers", "[features.99]"], "features.99"),
        (["--target.model", "vgg99bn"], "vgg9bn"),
        (["--source.checkpoint", "/nowhere.pt"], "/nowhere.pt"),
        (["--source.checkpoint", "~nobody-of-that-name/x.pt"], "no checkpoint file ~nobody-of-that-name/x.pt"),
        (["--source.checkpoint", "null"], "source.checkpoint is not set"),
        (["--data.dataset", "imagefolder", "--data.data_dir", "~nobody-of-that-name/x"], "~nobody-of-that-name/x"),
        (["--source.num_classes", "6"], "another network"),
        (["--data.per_class", "100000"], "100000"),
        (["--data.classes", "[5, 77]"], "77"),
        (["--data.dataset", "digit"], "digits"),
        (["--device", "gpu"], "device 'gpu' cannot be used here"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_no_folder(train, tmp_path, capsys, arguments, said):
    assert train(*arguments) == 2
    assert_one_sentence(capsys, said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--target.model", "nope"], "there is no network 'nope'"),
        (["train", "--pairs", "abc"], "pairs: 'abc' is neither single"),
        (["train", "--data.per_class", "100000"], "fewer than per_class = 100000"),
        (["compare", "--target.model", "nope"], "there is no network 'nope'"),
        (["compare", "--per_class", "[2, 100000]"], "fewer than per_class = 100000"),
    ],
)
def test_a_mistake_costs_no_training_of_the_embedded_source(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.setattr(Trainer, "fit", lambda trainer: pytest.fail("the source was trained"))
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 2
    assert_one_sentence(capsys, said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epohs: 3", "unknown key epohs, did you mean epochs?"),
        ("data:\n  per_clas: 3", "unknown key data.per_clas, did you mean data.per_class?"),
        ("epochs: [1", "line 1"),
        ("[1, 2]", "wrong.yaml holds a list, it must hold keys and their values, such as epochs: 3"),
        ("", "wrong.yaml is empty, it must hold keys and their values"),
        ("epochs", "wrong.yaml holds a single value, it must hold keys and their values"),
        ("pairs: [0:1, 2:4]", "pairs: ['0:1', 124] is not what it takes, see --help (in YAML a pair needs quotes"),
    ],
)
def test_a_mistake_in_a_file(tmp_path, capsys, text, said):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    assert main(["train", "--config", str(path)]) == 2
    assert_one_sentence(capsys, said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inspect"], "what is missing: RUN, see --help"),
        (["bench", "compare", "before.csv"], "what is missing: AFTER, see --help"),
        (["bench"], "bench needs one of run, report, compare behind it"),
    ],
)
def test_what_a_command_lacks(capsys, arguments, said):
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"error: {said}\n"


@pytest.mark.parametrize("command", ["train", "compare"])
def test_help_offers_no_file_for_a_group_of_keys(capsys, command):
    """--source FILE is refused."""
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert "--source.model MODEL" in shown and "--source CONFIG" not in shown and "--data CONFIG" not in shown


@pytest.mark.parametrize("kept", ["", "source:", "source:\n  model: resn", "method: fm\n", "label: null\nse"])
def test_a_configuration_that_was_cut_short_is_not_told_as_other_settings(train, tmp_path, capsys, kept):
    assert train("--method", "fm", "--seed", "0") == 0
    path = tmp_path / "run" / "config.yaml"
    whole = path.read_text()
    assert kept in whole
    path.write_text(whole[: whole.index(kept) + len(kept)])
    capsys.readouterr()
    assert train("--method", "fm", "--seed", "0", "--resume") == 2
    assert_one_sentence(capsys, "it is not known what this folder holds: ", str(path))


@pytest.mark.parametrize(("command", "kind"), [("train", TrainConfig), ("compare", CompareConfig)])
def test_images_of_somebody_s_own_get_no_settings_of_the_digits(command, kind, capsys):
    images = {"dataset": "imagefolder", "data_dir": "here"}
    flags = [f"--data.{name}={value}" for name, value in images.items()]
    name, options = cli._parse([command, *flags, "--epochs", "3"])
    assert (name, to_config(options, kind)) == (command, kind(data=DataConfig(**images), epochs=3))
    for given, beta in ((flags, 0.5), ([], read_config(embedded_config(), kind).beta)):
        with pytest.raises(SystemExit):
            cli._parse([command, *given, "--print_config"])
        assert yaml.safe_load(capsys.readouterr().out)["beta"] == beta
    _, options = cli._parse([command, "--data.batch_size", "5"])
    digits = read_config(embedded_config(), kind)
    digits.data.batch_size = 5
    assert to_config(options, kind) == digits


def test_a_folder_without_its_kind_is_not_taken_for_the_digits(tmp_path, capsys):
    assert main(["train", "--data.data_dir", "here", "--out", str(tmp_path / "run")]) == 2
    assert_one_sentence(capsys, "data.data_dir is here, but the digits are in no folder: set data.dataset to")
    assert not (tmp_path / "run").exists()


def test_files_and_folders_that_are_not_there(tmp_path, capsys):
    assert main(["train", "--config", str(tmp_path / "no.yaml")]) == 2
    assert_one_sentence(capsys, "no.yaml")
    assert main(["inspect", str(tmp_path / "no")]) == 2
    assert_one_sentence(capsys, "holds neither a run")
    assert main(["trian"]) == 2
    assert_one_sentence(capsys, "trian")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "too little memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "too little memory"),
        (RuntimeError("std::bad_alloc"), "too little memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "a process that reads images was"),
    ],
)
def test_too_little_memory_is_one_sentence(train, monkeypatch, capsys, error, told):
    def raise_it(*args, **kwargs):
        raise error

    monkeypatch.setattr(Trainer, "train_batch", raise_it)
    assert train() == 2
    assert_one_sentence(capsys, told)


def test_an_unexpected_error_is_not_hidden(train, monkeypatch):
    def raise_it(*args, **kwargs):
        raise RuntimeError("a defect")

    monkeypatch.setattr(Trainer, "train_batch", raise_it)
    with pytest.raises(RuntimeError, match="a defect"):
        train()


def test_an_error_in_somebodys_own_method_says_how_to_see_where(train, capsys, monkeypatch):
    """Python's words alone name neither a file nor a line."""
    monkeypatch.setattr(METHODS["scratch"], "start_epoch", lambda self: [*None])
    assert train("--method", "scratch") == 2
    assert_one_sentence(capsys, "must be an iterable, not NoneType", "(TypeError; --debug shows where)")
    assert train("--method", "scratch", "--resume", "--debug") == 2
    told = capsys.readouterr().err
    assert "Traceback" in told and "--debug" not in told


def test_debug_shows_the_traceback(train, capsys):
    assert train("--method", "none", "--debug") == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and err.splitlines()[-1].startswith("error: there is no method 'none'")


def test_a_full_disk_is_one_sentence_and_resume_goes_on(train, tmp_path, monkeypatch, capsys):
    calls = []
    fsync = os.fsync

    def full(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("last.pt.tmp"):
            calls.append(descriptor)
            if len(calls) > 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert train("--method", "fm", "--epochs", "6") == 2
    assert_one_sentence(capsys, "could not be written: No space left on device", "the one before it is intact")
    monkeypatch.undo()
    kept = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")["epoch"]
    assert kept == 2
    assert train("--method", "fm", "--epochs", "6", "--resume") == 0
    assert f"epoch {kept + 1}/6" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written(train, monkeypatch, capsys):
    def denied(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", denied)
    assert train("--method", "scratch") == 2
    assert_one_sentence(capsys, "run cannot be written: Read-only file system")


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_folder_whose_name_is_too_long(config, tmp_path, capsys, command):
    name = tmp_path / ("x" * 300)
    chosen = {"train": ["--method", "scratch"], "compare": ["--methods", "[scratch]"]}[command]
    assert main([command, "--config", str(config), "--out", str(name), *chosen]) == 2
    assert_one_sentence(capsys, f"{name}", "File name too long")


def test_a_run_folder_whose_name_is_too_long(tmp_path):
    folder = RunFolder(tmp_path / ("x" * 300))
    with pytest.raises(L2TFastError, match=r"the run folder .*x cannot be written: File name too long"):
        folder.open(TrainConfig(), torch.device("cpu"), resume=False)


def test_ctrl_c_in_this_process(train, tmp_path, monkeypatch, capsys):
    def pressed(trainer, *batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "train_batch", pressed)
    assert train("--method", "scratch") == 130
    err = capsys.readouterr().err.strip()
    assert err == "interrupted: the same command with --resume continues where it stopped"


def test_ctrl_c_in_mid_epoch(config, tmp_path):
    """A real SIGINT: exit code 130, one sentence, a checkpoint that loads and continues."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "l2t_fast.cli", "train", "--config", str(config), "--out", str(out)]
    command += ["--method", "l2t-ww", "--epochs", "500"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    last = out / "checkpoints" / "last.pt"
    deadline = time.monotonic() + 120
    while not last.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "interrupted: the same command with --resume continues where it stopped" in err
    epoch = load_checkpoint(last)["epoch"]
    assert 1 <= epoch < 500
    assert "interrupted" in (out / "log.txt").read_text()


def test_interrupt_that_pytorch_turned_into_another_error(monkeypatch, capsys):
    def swallow_interrupt(options):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            raise RuntimeError("raised inside a compiler") from None

    monkeypatch.setitem(cli._COMMANDS, "env", swallow_interrupt)
    before = signal.getsignal(signal.SIGINT)
    assert main(["env"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


@contextlib.contextmanager
def unread():
    """Standard output goes where nobody reads, as after ``| head -1`` has read its line."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as output, contextlib.redirect_stdout(output):
        yield


def test_output_that_nobody_reads_any_more(train, tmp_path, capsys):  # l2t-fast train | head -1
    with unread():
        assert train("--method", "scratch") == cli.INTERRUPTED
    told = "interrupted, since nobody reads the output any more"
    err = capsys.readouterr().err.strip()
    assert err == f"{told}: the same command with --resume continues where it stopped"
    assert told in (tmp_path / "run" / "log.txt").read_text()


def test_a_terminal_without_utf_8(config, tmp_path, monkeypatch):
    arguments = ["compare", "--config", str(config), "--methods", "[scratch]", "--seeds", "[0]"]
    with open(tmp_path / "shown", "w", encoding="latin-1") as output, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        assert main([*arguments, "--out", str(tmp_path / "comparison")]) == 0
    assert "Scratch" in (tmp_path / "shown").read_text(encoding="latin-1")


@pytest.mark.parametrize("arguments", [["env"], ["inspect", "run"], ["bench", "compare", "rows.csv", "rows.csv"]])
def test_what_only_shows_ends_silently_where_nobody_reads(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    RunFolder(tmp_path / "run").add_metrics(dict.fromkeys(METRICS, 0.0) | {"epoch": 1})
    (tmp_path / "rows.csv").write_bytes(default_rows().read_bytes())
    with unread():
        assert main(arguments) == cli.INTERRUPTED
    assert capsys.readouterr().err == ""


def test_help_that_nobody_reads(capsys):
    with unread():
        assert main(["train", "--help"]) == cli.INTERRUPTED
    assert capsys.readouterr().err == ""


def test_output_into_a_file_on_a_full_disk(capsys):
    with open("/dev/full", "w") as output, contextlib.redirect_stdout(output):
        assert main(["env"]) == 2
    assert_one_sentence(capsys, "error: standard output cannot be written: No space left on device")


def test_python_has_nothing_to_add_on_its_way_out():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "l2t_fast", "env"]
    process = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writing)
    assert (process.returncode, process.stderr) == (cli.INTERRUPTED, "")


@pytest.mark.parametrize("way", ["module", "script"])
def test_ctrl_c_while_pytorch_is_imported(tmp_path, way):
    script = tmp_path / "l2t-fast"
    script.write_text("import sys\nfrom l2t_fast.cli import main\nsys.exit(main())\n")
    command = [sys.executable, *{"module": ["-m", "l2t_fast"], "script": [str(script)]}[way], "env"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert (*process.communicate(timeout=60), process.returncode) == ("", "", -signal.SIGINT)


def test_the_folder_one_is_in_was_removed(tmp_path):
    """PyTorch's libraries end such a program with a sentence about something else."""
    (tmp_path / "gone").mkdir()
    code = (
        "import os, runpy, sys; os.rmdir(os.getcwd()); sys.argv = ['l2t-fast', 'env']; runpy.run_module('l2t_fast.cli')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "gone",
        env=os.environ | {"PYTHONPATH": str(Path(l2t_fast.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 2 and done.stderr == "error: the folder you are in was removed, go to another one with cd\n"
    )
