"""What can be chosen: one dataclass field is one YAML key and one command-line flag of the same name.

The defaults are the method's at CIFAR scale (Jang et al., ICML 2019), but that images are not augmented, which not all
images bear. ``configs/digits.yaml`` inside the package overrides them for the embedded run, which needs no download.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from l2t_fast.bilevel import METHODS as HYPERGRADIENTS
from l2t_fast.config_types import check_types
from l2t_fast.data import DataConfig
from l2t_fast.data.config import check_mean_and_std
from l2t_fast.distributed.source_plan import PLANS
from l2t_fast.errors import L2TFastError
from l2t_fast.files import expand_user, write_text
from l2t_fast.ops import BACKENDS
from l2t_fast.text import printable

#: What `precision` may name: dtypes of PyTorch.
PRECISIONS = ("float32", "bfloat16", "float16")

#: How the pair weights may begin.
LAMBDA_STARTS = ("random", "even")

MOST_EPOCHS = 1_000_000
#: Of a rate or a weight: float32 holds it, and what an optimizer or a kernel makes of it before a loss shows it.
LARGEST_FACTOR = 1e30
MOST_THREADS = 1024  # with a hundred thousand, OpenMP ends the process

#: Seeds are below it, so that their sums fit every random generator.
SEED_LIMIT = 2**31
#: The checkpoint that stands for the weights published with a network.
PUBLISHED = "default"
#: Names of several sources, which stand before a "/" in the names of their feature maps and before a ":" in pairs.
SOURCE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


@dataclass
class SourceConfig:
    """A frozen, pretrained network whose features are transferred.

    Attributes:
        model: architecture, as `l2t_fast.models.build_model` names it
        checkpoint: file with its weights, or default for those published with torchvision:NAME, timm:NAME (both are
            downloaded then) or efficientnet-lite0; every method but scratch needs one, or pretrain
        num_classes: number of classes the checkpoint was trained on; null reads it off the checkpoint
        layers: names of the feature maps to match; null takes the architecture's own choice
        image_size: height and width that the target's images are resized to for it; null leaves theirs
        normalization: imagenet | data (as the target's images) | [[mean ...], [std ...]] for pixels in 0 ... 1; null
            takes what the checkpoint was trained with
        unit_rms: divide every feature map by its root mean square over some training images, so that layers and sources
            whose values differ in size start on an equal footing
    """

    model: str = "l2tww_resnet32"
    checkpoint: str | None = None
    num_classes: int | None = None
    layers: list[str] | None = None
    image_size: int | None = None
    normalization: list[list[float]] | str | None = None
    unit_rms: bool = False

    def check(self, key: str) -> None:
        """Raise L2TFastError for the first value that is out of range; messages call the source `key`."""
        for name in ("num_classes", "image_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise L2TFastError(f"{key}.{name} is {value}, it must be at least 1, or null")
        if self.checkpoint == "":
            raise L2TFastError(f"{key}.checkpoint is empty, it must be a file, {PUBLISHED} or null")
        if isinstance(self.normalization, list):
            check_mean_and_std(f"{key}.normalization", self.normalization)
        elif self.normalization not in (None, "imagenet", "data"):
            raise L2TFastError(
                f"{key}.normalization is {printable(self.normalization)!r}, it must be imagenet, data or "
                "[[mean ...], [std ...]]"
            )


@dataclass
class TargetConfig:
    """The network that is trained.

    Attributes:
        model: architecture, as `l2t_fast.models.build_model` names it
        layers: names of the feature maps to match; null takes the architecture's own choice
    """

    model: str = "vgg9bn"
    layers: list[str] | None = None


@dataclass
class PretrainConfig:
    """How the source is made when `source.checkpoint` is null.

    Attributes:
        data: the images it learns from, which should not be the target's
        epochs: passes over them; 0 makes no source
        lr: learning rate at the start of the half cosine
        weight_decay: weight decay of the SGD
        seed: of everything random in it
    """

    data: DataConfig = field(default_factory=DataConfig)
    epochs: int = 0
    lr: float = 0.1
    weight_decay: float = 1e-4
    seed: int = 0

    def check(self, key: str) -> None:
        """Raise L2TFastError for the first value that is out of range; messages call the group `key`."""
        _check_rate(f"{key}.lr", self.lr)
        _check_weight(f"{key}.weight_decay", self.weight_decay)
        _check_epochs(f"{key}.epochs", self.epochs)
        self.data.check(f"{key}.data")


@dataclass
class TransferOptions:
    """What a single run and a comparison have in common.

    Attributes:
        source: the frozen network, if there is one
        sources: several frozen networks instead of source, by name, each with source's keys: --sources.NAME.model ...
        pretrain: how the frozen network is made if it has no checkpoint
        target: the network to train
        data: the images
        pairs: single | one-to-one | all-to-all, or a list of SOURCE:TARGET with names or indices of feature maps;
            null takes the method's own choice (one-to-one for fm and at, all-to-all for the learned ones); fine-tune
            and lwf match none
        beta: weight of the matching loss of fm, l2t-w and l2t-ww beside the cross-entropy
        lwf_weight: weight of the distillation of lwf and lwf-at (lambda_o of Li and Hoiem, who take 1)
        at_weight: weight of the attention loss of at and lwf-at, a mean over pixels and images (beta of Zagoruyko and
            Komodakis, who take 1000)
        lookahead_steps: T, steps on the matching loss that the hypergradient looks ahead
        hypergradient: exact | finite_difference (first-order passes only, an approximation) | double_backward (slow,
            for checking)
        keep_graphs: the exact hypergradient keeps the graphs of all look-ahead steps: a tenth less arithmetic, more
            memory
        lambda_start: of l2t-ww: random (the paper's: g's weights are drawn, and lambda begins anywhere from 0 to 6) |
            even (they begin at 0, and lambda at 1 for all pairs and images)
        epochs: passes over the training images
        lr: learning rate of the target at the start; it falls to 0 along a half cosine, once an epoch
        momentum: momentum of the target's SGD
        weight_decay: weight decay of the target's SGD
        nesterov: Nesterov's form of the momentum
        meta_lr: learning rate of Adam for the weight networks, constant
        meta_weight_decay: weight decay of Adam for the weight networks
        device: auto (a GPU if there is one) | cpu | cuda | cuda:1 ...
        threads: CPU threads of PyTorch; null leaves its own choice, 1 suits images of a few pixels
        channels_last: keep feature maps with channels innermost, which convolutions may prefer
        precision: float32 | bfloat16 | float16 (with loss scaling): of the source, the real step and evaluation. The
            look-ahead and the hypergradient stay in float32: rounded features point a second derivative elsewhere
        accumulation: number of pieces in which a batch goes through the target one after the other, to save memory; its
            batch normalisation takes each piece by itself, and all else is as with one piece
        compile: run the source, the real step and evaluation through torch.compile; not the look-ahead, since what is
            compiled cannot be differentiated twice
        cuda_graph: on one GPU, capture the whole step, look-ahead and hypergradient included, into two CUDA graphs that
            two calls launch; a smaller last batch of an epoch runs without. The step's memory stays taken between steps
        backend: implementation of the matching loss: auto | reference | cpu | cuda | triton
        source_plan: where several ranks run several sources: images (each rank all, on its own images) | maps (each
            some, on all images) | pairs (each some, with what is learned about their pairs) | auto (what sends the
            least bytes and fits the memory; log.txt says why)
        source_memory: GiB that sources, their maps and the target's maps of other ranks may take on a rank; null is
            half of what is free on a GPU, and no limit on a CPU
    """

    source: SourceConfig = field(default_factory=SourceConfig)
    sources: dict[str, SourceConfig] | None = None
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    data: DataConfig = field(default_factory=DataConfig)
    pairs: str | list[str] | None = None
    beta: float = 0.5
    lwf_weight: float = 1.0
    at_weight: float = 1000.0
    lookahead_steps: int = 2
    hypergradient: str = "exact"
    keep_graphs: bool = False
    lambda_start: str = "random"
    epochs: int = 200
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    nesterov: bool = False
    meta_lr: float = 1e-4
    meta_weight_decay: float = 1e-4
    device: str = "auto"
    threads: int | None = None
    channels_last: bool = False
    precision: str = "float32"
    accumulation: int = 1
    compile: bool = False
    cuda_graph: bool = False
    backend: str = "auto"
    source_plan: str = "auto"
    source_memory: float | None = None

    def check(self) -> None:
        """Raise L2TFastError for the first value that is out of range, naming its key and what would be right.

        Values get the types that the attributes declare.
        """
        check_types(self)
        self._check_sources()
        if self.pretrain.epochs < 0:
            raise L2TFastError(f"pretrain.epochs is {self.pretrain.epochs}, it must be at least 0")
        for name, lowest in (("epochs", 1), ("lookahead_steps", 0), ("accumulation", 1)):
            if getattr(self, name) < lowest:
                raise L2TFastError(f"{name} is {getattr(self, name)}, it must be at least {lowest}")
        for name in ("beta", "lwf_weight", "at_weight", "weight_decay", "meta_weight_decay"):
            _check_weight(name, getattr(self, name))
        for name in ("lr", "meta_lr"):
            _check_rate(name, getattr(self, name))
        _check_epochs("epochs", self.epochs)
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise L2TFastError(
                f"threads is {self.threads}, it must be from 1 to {MOST_THREADS}, or null for PyTorch's choice"
            )
        check_seed("data.seed", self.data.seed)
        check_seed("pretrain.seed", self.pretrain.seed)
        check_seed("pretrain.data.seed", self.pretrain.data.seed)
        if self.pretrain.epochs:
            self.pretrain.check("pretrain")
        if not 0 <= self.momentum < 1:
            raise L2TFastError(f"momentum is {self.momentum}, it must be at least 0 and below 1")
        if self.nesterov and self.momentum == 0:
            raise L2TFastError("nesterov needs a momentum above 0")
        if self.source_memory is not None and not 0 < self.source_memory < float("inf"):
            raise L2TFastError(f"source_memory is {self.source_memory}, it must be a number of GiB above 0, or null")
        choices = (
            ("hypergradient", HYPERGRADIENTS),
            ("lambda_start", LAMBDA_STARTS),
            ("precision", PRECISIONS),
            ("backend", BACKENDS),
            ("source_plan", ("auto", *PLANS)),
        )
        for name, known in choices:
            if getattr(self, name) not in known:
                raise L2TFastError(f"{name} is {getattr(self, name)!r}, it must be one of {', '.join(known)}")

    def named_sources(self) -> dict[str, SourceConfig]:
        """The sources by name; a single one is called ""."""
        return {"": self.source} if self.sources is None else self.sources

    def may_share_sources(self) -> bool:
        """Whether several ranks have a choice where the sources run: there are several, or it says to divide them."""
        return len(self.named_sources()) > 1 or self.source_plan in ("maps", "pairs")

    def _check_sources(self) -> None:
        for name, source in self.named_sources().items():
            if self.sources is not None and not SOURCE_NAME.fullmatch(str(name)):
                raise L2TFastError(
                    f"sources: {printable(name)!r} is no name for a source, take letters, digits and any of _ . + -"
                )
            source.check(f"sources.{name}" if name else "source")
        if self.sources is None:
            return
        if not self.sources:
            raise L2TFastError("sources is empty, it must name at least one; leave it out for a single source")
        if self.source != SourceConfig():
            raise L2TFastError(
                "source and sources are both set: name all sources under sources, or a single one "
                "(without --config, the embedded digits set source)"
            )
        if self.pretrain.epochs > 0:
            raise L2TFastError(
                "pretrain makes a single source: leave it out, and give every one of sources a checkpoint"
            )


@dataclass
class TrainConfig(TransferOptions):
    """One run of one method.

    Attributes:
        method: scratch | fine-tune | lwf | at | lwf-at | fm | l2t-w | l2t-ww
        label: what results call it; null takes the method's name
        seed: of everything random: initial weights, dropout and, added to data.seed, which images are trained on
            and in which order
        out: folder of the run; null takes runs/METHOD-seedSEED
    """

    method: str = "l2t-ww"
    label: str | None = None
    seed: int = 0
    out: str | None = None

    def check(self) -> None:
        """As `TransferOptions.check`, for the seed too."""
        super().check()
        check_seed("seed", self.seed)
        if self.out == "":
            raise L2TFastError("out is empty, it must be a folder, . for the one you are in, or null")

    def folder(self) -> Path:
        """Where the run's files go."""
        return expand_user(self.out) if self.out is not None else Path("runs") / f"{self.method}-seed{self.seed}"


@dataclass
class CompareConfig(TransferOptions):
    """Several methods over several seeds and numbers of images, each time on the same images.

    Attributes:
        methods: names of methods, each alone or as METHOD-PAIRS, for example fm-single, and with options of its own as
            METHOD@KEY=VALUE, for example fm@beta=2 or l2t-ww@beta=2@meta_lr=1e-3
        per_class: numbers N of training images a class, the smaller sets within the larger ones; null takes
            data.per_class alone
        seeds: one run a method, N and seed
        out: folder of the comparison
    """

    methods: list[str] = field(default_factory=lambda: ["scratch", "fm", "l2t-ww"])
    per_class: list[int] | None = None
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    out: str = "runs/compare"

    def check(self) -> None:
        """As `TransferOptions.check`, for the lists too."""
        super().check()
        if not self.out:
            raise L2TFastError("out is empty, it must be a folder, . for the one you are in")
        for name in ("methods", "per_class", "seeds"):
            values = getattr(self, name)
            if values is None:
                continue
            if not values:
                raise L2TFastError(f"{name} is empty, it must name at least one")
            if len(set(values)) < len(values):
                raise L2TFastError(f"{name} is {values}, each must stand there once")
        for seed in self.seeds:
            check_seed("seeds", seed)
        for number in self.per_class or ():
            if number < 1:
                raise L2TFastError(f"per_class has {number}, every number must be at least 1")

    def folder(self) -> Path:
        """Where the comparison's files go."""
        return expand_user(self.out)


def _check_weight(name: str, value: float) -> None:
    if not 0 <= value <= LARGEST_FACTOR:
        raise L2TFastError(f"{name} is {value}, it must be a number of at least 0 and at most {LARGEST_FACTOR:g}")


def _check_rate(name: str, value: float) -> None:
    if not 0 < value <= LARGEST_FACTOR:
        raise L2TFastError(f"{name} is {value}, it must be a number above 0 and at most {LARGEST_FACTOR:g}")


def _check_epochs(name: str, value: int) -> None:
    if value > MOST_EPOCHS:
        raise L2TFastError(f"{name} is {value}, it must be at most {MOST_EPOCHS}")


def check_seed(name: str, seed: int) -> None:
    """Raise L2TFastError for a seed that a random generator does not take."""
    if not 0 <= seed < SEED_LIMIT:
        raise L2TFastError(f"{name} is {seed}, it must be at least 0 and below 2^31")


def embedded_config() -> Path:
    """The configuration that `l2t-fast train` and `l2t-fast compare` take when none is named: scikit-learn's digits."""
    return Path(str(resources.files("l2t_fast") / "configs" / "digits.yaml"))


def config_tree(config: TransferOptions) -> dict[str, Any]:
    """`config` as nested dictionaries, as files hold it: either `source` or `sources`, not both."""
    tree = dataclasses.asdict(config)
    del tree["source" if config.sources is not None else "sources"]
    return tree


def write_config(config: TransferOptions, path: Path) -> None:
    """Write `config` as YAML that `--config` reads back; the file is whole or as it was."""
    write_text(yaml.safe_dump(config_tree(config), sort_keys=False), path)
