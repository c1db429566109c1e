"""Entries of a comparison's methods."""

import pytest
import yaml

from l2t_fast.config import CompareConfig
from l2t_fast.errors import L2TFastError
from l2t_fast.report.style import method_label, method_styles
from l2t_fast.transfer.compare import compare
from l2t_fast.transfer.method_entries import parse_method


def test_a_method_and_its_pairs():
    assert parse_method("fm") == ("fm", None, {})
    assert parse_method("fm-one-to-one") == ("fm", "one-to-one", {})
    assert parse_method("l2t-w-single") == ("l2t-w", "single", {})
    assert parse_method("l2t-ww-all-to-all") == ("l2t-ww", "all-to-all", {})
    for wrong in ("fmm", "fm-double", "-single"):
        with pytest.raises(L2TFastError, match=f"there is no method '{wrong}'"):
            parse_method(wrong)


def test_options_of_their_own():
    assert parse_method("fm-single@beta=2") == ("fm", "single", {"beta": 2.0})
    options = parse_method("l2t-ww@meta_lr=1e-3@lookahead_steps=0@keep_graphs=true@hypergradient=exact").options
    assert options == {"meta_lr": 1e-3, "lookahead_steps": 0, "keep_graphs": True, "hypergradient": "exact"}
    assert isinstance(parse_method("fm@beta=2").options["beta"], float)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("fm@bet=2", "methods has 'fm@bet=2', but bet is no option of a method: the closest names are beta"),
        ("fm@device=cpu", "device is no option of a method: "),
        ("fm@pairs=single", "pairs is no option of a method: "),
        ("fm@threads=1", "threads is no option of a method: "),
        ("fm@beta", "options of its own stand behind the method as in fm@lr=0.05"),
        ("fm@", "options of its own stand behind the method"),
        ("fm@beta=", "options of its own stand behind the method"),
        ("fm@beta=../2", "options of its own stand behind the method"),
        ("fm@beta=2 ", "options of its own stand behind the method"),
        ("fm@beta=2@beta=3", "says one option twice"),
        ("scratch@beta=2", "but scratch does not use beta"),
        ("at@lwf_weight=2", "but at does not use lwf_weight"),
        ("fm@meta_lr=1e-3", "but fm does not use meta_lr"),
        ("l2t-w@lambda_start=even", "but l2t-w does not use lambda_start"),
        ("scratch@hypergradient=exact", "but scratch does not use hypergradient"),
        ("fm@beta=x", "methods has 'fm@beta=x': beta is 'x', it must be a number"),
        ("fm@beta=-1", "methods has 'fm@beta=-1': beta is -1.0, it must be a number of at least 0"),
        ("l2t-w@lookahead_steps=1.5", "lookahead_steps is '1.5', it must be a whole number"),
        ("fm@nesterov=yes", "nesterov is 'yes', it must be True or False"),
        ("l2t-ww@hypergradient=no", "hypergradient is 'no', it must be one of exact"),
        ("fmm@beta=2", "there is no method 'fmm'"),
    ],
)
def test_mistakes(entry, told):
    with pytest.raises(L2TFastError) as raised:
        parse_method(entry)
    assert told in str(raised.value)


def test_the_same_in_other_words_is_refused(make_config, quiet):
    for methods in (["fm@beta=2", "fm@beta=2.0"], ["fm@lr=1e-2@beta=2", "scratch", "fm@beta=2@lr=0.01"]):
        config = CompareConfig(data=make_config().data, methods=methods, out=make_config().out)
        with pytest.raises(L2TFastError, match=f"methods has {methods[0]} and {methods[-1]}, which are the same"):
            compare(config, quiet)


def test_each_is_run_with_its_own_and_shown_by_it(make_config, quiet):
    config = make_config(epochs=1, lr=0.05)
    common = {name: getattr(config, name) for name in ("source", "target", "data", "epochs", "lr", "device", "out")}
    methods = ["fm", "fm@beta=2", "scratch@lr=0.01@epochs=2"]
    outcome = compare(CompareConfig(**common, methods=methods, seeds=[0]), quiet)
    assert not outcome.failures
    found = {}
    for entry in methods:
        saved = yaml.safe_load((config.folder() / "runs" / f"{entry}-seed0" / "config.yaml").read_text())
        found[entry] = saved["method"], saved["label"], saved["beta"], saved["lr"], saved["epochs"]
    assert found == {
        "fm": ("fm", "fm", 0.5, 0.05, 1),
        "fm@beta=2": ("fm", "fm@beta=2", 2.0, 0.05, 1),
        "scratch@lr=0.01@epochs=2": ("scratch", "scratch@lr=0.01@epochs=2", 0.5, 0.01, 2),
    }
    page = outcome.page.read_text()
    assert all(
        shown in page for shown in ("FM (beta 2)", "Scratch (lr 0.01, epochs 2)", "β differs between runs: 0.5; 2")
    )


def test_labels_and_styles():
    assert method_label("l2t-ww@beta=2@meta_lr=1e-3") == "L2T-ww (beta 2, meta lr 1e-3)"
    assert method_label("fm-all-to-all@beta=2", narrow=True) == "FM (all pairs, beta 2)"
    assert method_label("own@beta=2") == "own (beta 2)"
    styles = method_styles(["fm", "fm@beta=2", "fm-single@beta=2", "own", "own@beta=2"])
    assert styles["fm"].color == styles["fm@beta=2"].color == styles["fm-single@beta=2"].color
    assert len({(style.color, style.marker) for style in styles.values()}) == 5
