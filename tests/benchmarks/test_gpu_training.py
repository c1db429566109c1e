"""The runs of `make gpu` are those of the embedded comparison; what trains on a GPU is seen there."""

import dataclasses

from benchmarks.gpu_training import embedded, planned
from l2t_fast.config import CompareConfig, SourceConfig, embedded_config
from l2t_fast.parsing import read_config


def test_the_configuration_is_what_the_command_line_reads():
    assert embedded() == read_config(embedded_config(), CompareConfig)


def test_runs_are_seed_by_seed_each_in_a_folder_of_its_own(tmp_path):
    config = embedded(device="cuda", cuda_graph=True, seeds=[0, 1], out=str(tmp_path))
    runs = planned(config, SourceConfig("resnet8", "source.pt", num_classes=26))
    found = [(run.method, run.precision, run.seed) for run in runs]
    methods = [("l2t-ww", "float32"), ("fm", "float32"), ("scratch", "float32"), ("l2t-ww", "bfloat16")]
    assert found == [(*method, seed) for seed in (0, 1) for method in methods]
    assert len({run.out for run in runs}) == len(runs) and all(run.out.startswith(str(tmp_path)) for run in runs)
    for run in runs:
        run.check()
        own = {"precision": "float32", "out": None, "method": "l2t-ww", "label": "l2t-ww"}
        assert dataclasses.replace(run, **own) == dataclasses.replace(runs[0], **own, seed=run.seed)
