import pkgutil

import pytest

from l2t_fast.config import TargetConfig
from l2t_fast.errors import L2TFastError
from l2t_fast.transfer import METHODS, Trainer, methods
from l2t_fast.transfer.method_entries import parse_method
from l2t_fast.transfer.pairs import SCHEMES

MATCHING = [name for name, method in METHODS.items() if method.default_pairs is not None]


def test_every_method_of_the_paper_is_there_in_a_file_of_its_own():
    wanted = {"scratch", "fine-tune", "lwf", "at", "lwf-at", "fm", "l2t-w", "l2t-ww"}
    assert wanted <= set(METHODS)
    assert len({method.__module__ for method in METHODS.values()}) == len(METHODS)
    files = {f"{methods.__name__}.{file.name}" for file in pkgutil.iter_modules(methods.__path__)}
    shared = {f"{methods.__name__}.{name}" for name in ("base", "learned_matching", "registry")}
    assert {method.__module__ for method in METHODS.values()} == files - shared


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", MATCHING)
def test_every_scheme_serves_every_method_that_matches_features(make_config, quiet, name, scheme):
    method, pairs, _ = parse_method(f"{name}-{scheme}")
    trainer = Trainer(make_config(method=method, pairs=pairs, lookahead_steps=0), quiet)
    assert len(trainer.pairs) == {"single": 1, "one-to-one": 3, "all-to-all": 9}[scheme]
    x, y = next(iter(trainer.data.train))
    _, term, _ = trainer.train_batch(x, y)
    assert term > 0


def test_the_scheme_that_each_takes_by_itself():
    found = {name: method.default_pairs for name, method in METHODS.items()}
    learned = {"l2t-w": "all-to-all", "l2t-ww": "all-to-all"}
    matched = {"fm": "one-to-one", "at": "one-to-one", "lwf-at": "one-to-one"}
    wanted = learned | matched | {"scratch": None, "fine-tune": None, "lwf": None}
    assert {name: found[name] for name in wanted} == wanted


@pytest.mark.parametrize("name", sorted(METHODS.keys() - set(MATCHING)))
def test_a_method_without_pairs_takes_no_scheme_and_heeds_none(make_config, quiet, name):
    with pytest.raises(L2TFastError, match=f"{name} matches no feature maps, so it takes no pairs; write {name}"):
        parse_method(f"{name}-single")
    trainer = Trainer(make_config(method=name, pairs="all-to-all", target=TargetConfig("resnet8")), quiet)
    assert trainer.pairs == [] and "pairs" not in trainer.describe()
