"""Several frozen networks, each with its own input, as one flat list of feature maps."""

import contextlib
import dataclasses
import re
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torchvision.transforms.v2 import functional as transforms

from l2t_fast import FeatureMatching, WeightNetwork
from l2t_fast.config import SourceConfig
from l2t_fast.data import DataConfig, load_data
from l2t_fast.errors import L2TFastError
from l2t_fast.models import IMAGENET_MEAN, IMAGENET_STD, build_model, read_checkpoint
from l2t_fast.report import build_report
from l2t_fast.transfer import Trainer, run
from l2t_fast.transfer.checkpoint import load_checkpoint
from l2t_fast.transfer.inspect import inspect_run
from l2t_fast.transfer.pairs import resolve_pairs
from l2t_fast.transfer.run_folder import read_rows
from l2t_fast.transfer.source import FrozenSource, FrozenSources, load_sources
from l2t_fast.transfer.source_input import SourceInput
from tests.transfer.test_trainer import Interrupting, assert_same_state

IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
LITE = ((127 / 255,) * 3, (128 / 255,) * 3)


def normalised(pixels, normalization):
    mean, std = normalization
    return transforms.normalize(pixels, list(mean), list(std))


@pytest.mark.parametrize("size", [None, 21, 32, 47])
def test_the_input_is_what_torchvision_makes_of_the_pixels(size):
    pixels = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    prepared = SourceInput(3, size, 3, IMAGENET, LITE)(normalised(pixels, IMAGENET))
    resized = pixels if size is None else transforms.resize(pixels, [size, size], antialias=True)
    torch.testing.assert_close(prepared, normalised(resized, LITE), rtol=0, atol=1e-13)


def test_efficientnet_lite_takes_pixels_minus_127_over_128():
    pixels = torch.randint(0, 256, (2, 3, 5, 5)).double()
    prepared = SourceInput(3, None, 3, IMAGENET, LITE)(normalised(pixels / 255, IMAGENET))
    torch.testing.assert_close(prepared, (pixels - 127) / 128, rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", [None, 8])
@pytest.mark.parametrize("normalization", [IMAGENET, None])
def test_images_that_suit_a_source_pass_untouched(size, normalization):
    x = torch.randn(2, 3, 8, 8)
    prepared = SourceInput(3, size, 3, IMAGENET, normalization)(x)
    assert torch.equal(prepared, x) and prepared.data_ptr() == x.data_ptr()


def test_grey_images_are_repeated_for_a_colour_source():
    pixels = torch.rand(2, 1, 6, 6, dtype=torch.float64)
    grey = ((0.3,), (0.4,))
    prepared = SourceInput(3, 9, 1, grey, IMAGENET)(normalised(pixels, grey))
    resized = transforms.resize(pixels, [9, 9], antialias=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(prepared, normalised(resized, IMAGENET), rtol=0, atol=1e-13)
    untouched = SourceInput(3, None, 1, grey, None)(pixels)
    assert torch.equal(untouched, pixels.expand(2, 3, 6, 6))


def two_sources():
    """A colour ResNet-8 at its own size and normalisation, and another one that takes the batch as it is."""
    torch.manual_seed(0)
    small, large = (build_model("resnet8", classes).double() for classes in (4, 6))
    for network in (small, large):
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 2)
    return FrozenSources(
        {
            "small": FrozenSource(small, 4, SourceInput(3, 8, 3, IMAGENET, LITE)),
            "large": FrozenSource(large, 6, SourceInput(3, None, 3, IMAGENET, IMAGENET)),
        }
    )


def test_two_sources_are_one_flat_list_of_maps():
    sources = two_sources().train()
    pixels = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    x = normalised(pixels, IMAGENET)
    logits, features = sources(x)
    small_x = normalised(transforms.resize(pixels, [8, 8], antialias=True), LITE)
    expected = [network.eval()(images) for network, images in zip(sources.networks, (small_x, x), strict=True)]
    names = ["layer1.0", "layer2.0", "layer3.0"]
    assert sources.feature_names == [f"small/{n}" for n in names] + [f"large/{n}" for n in names]
    assert sources.feature_channels == [16, 32, 64] * 2
    assert sources.maps_per_source == [3, 3] and sources.num_classes == [4, 6]
    for ours, truth in zip(logits, [e[0] for e in expected], strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-12)
    for ours, truth in zip(features, [m for e in expected for m in e[1]], strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-12)
    assert not any(tensor.requires_grad for tensor in (*logits, *features))
    assert not any(network.training for network in sources.networks)


def test_the_loss_over_two_sources_is_the_sum_of_the_losses_over_each():
    """One op call over the flat list, against an F.interpolate and F.conv2d for every pair by itself."""
    sources = two_sources()
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    features = sources(x).features
    target = [torch.randn(3, c, s, s, dtype=torch.float64, requires_grad=True) for c, s in ((5, 16), (7, 4))]
    pairs = resolve_pairs("all-to-all", sources.feature_names, ["a", "b"], sources.maps_per_source)
    matching = FeatureMatching(sources.feature_channels, [5, 7], pairs).double()
    weights = WeightNetwork(sources.feature_channels, pairs).double()
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter)
    loss_weights = [torch.rand(3, 1, dtype=torch.float64) for _ in pairs]
    channel_weights = weights(features)
    loss = matching(features, target, channel_weights, 0.5, loss_weights)
    expected = torch.zeros((), dtype=torch.float64)
    for p, (m, n) in enumerate(pairs):
        source_map = sources.parts[m // 3](x)[1][m % 3]  # the map of that source alone
        projected = F.conv2d(target[n], matching[p].weight, matching[p].bias)
        resized = F.interpolate(source_map, projected.shape[2:], mode="bilinear", align_corners=False)
        distance = (channel_weights[p][:, :, None, None] * (projected - resized) ** 2).sum(1).mean((1, 2))
        expected = expected + 0.5 * (loss_weights[p].flatten() * distance).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    ours = torch.autograd.grad(loss, target, retain_graph=True)
    truth = torch.autograd.grad(expected, target)
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_side_by_side_on_a_gpu_is_one_after_the_other():
    sources = two_sources().float().cuda()
    # With algorithms that give the same bits each time, as in training.
    with torch.backends.cudnn.flags(enabled=True, deterministic=True):
        for _ in range(20):
            x = torch.randn(64, 3, 32, 32, device="cuda")
            together = sources(x)
            expected = [part(x) for part in sources.parts]
            for ours, (logits, _) in zip(together.logits, expected, strict=True):
                assert torch.equal(ours, logits)
            for ours, truth in zip(together.features, [m for _, maps in expected for m in maps], strict=True):
                assert torch.equal(ours, truth)


def test_streams_wait_for_the_input_and_are_waited_for(monkeypatch):
    """The order of events, told by stand-ins, where no GPU shows it."""
    log = []

    class Stream:
        def __init__(self, device, name=None):
            self.device, self.name = device, name or f"side {sum('made' in entry for entry in log)}"
            log.append(f"{self.name} made")

        def wait_stream(self, other):
            log.append(f"{self.name} waits for {other.name}")

    main = Stream(torch.device("cpu"), "main")
    on = contextlib.contextmanager(lambda stream: (log.append(f"on {stream.name}"), (yield)))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: log.append(f"kept for {stream.name}"))
    sources = two_sources()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    outputs = sources._on_streams(x)
    for (logits, maps), part in zip(outputs, sources.parts, strict=True):
        expected, expected_maps = part(x)
        assert torch.equal(logits, expected) and all(map(torch.equal, maps, expected_maps))
    one, two = "side 1", "side 2"
    before = [f"{s} made" for s in ("main", one, two)]
    runs = [e for s in (one, two) for e in (f"{s} waits for main", f"on {s}", f"kept for {s}")]
    joins = [e for s in (one, two) for e in (f"main waits for {s}", *["kept for main"] * 4)]  # logits and three maps
    assert log == before + runs + joins
    sources._on_streams(x)
    assert log.count(f"{one} made") == 1  # streams are kept


@pytest.fixture(scope="module")
def digits():
    return load_data(DataConfig(classes=[5, 6, 7], per_class=6, batch_size=8))


@pytest.fixture
def checkpoint(tmp_path):
    """Write the weights of a network to a file, with whatever else a checkpoint holds."""

    def write(model="resnet8", classes=5, in_channels=1, **also):
        path = tmp_path / f"{model}-{classes}-{in_channels}.pt"
        torch.save({"model": build_model(model, classes, in_channels=in_channels).state_dict(), **also}, path)
        return str(path)

    return write


def test_a_single_source_keeps_the_plain_names(digits, checkpoint):
    sources = load_sources({"": SourceConfig("resnet8", checkpoint())}, digits)
    assert sources.feature_names == ["layer1.0", "layer2.0", "layer3.0"]
    assert sources.num_classes == [5]  # read off the checkpoint


@pytest.mark.parametrize("order", ["by name", "with extras behind", "counters behind"])
def test_tensors_may_stand_in_a_file_in_any_order(digits, tmp_path, order):
    """safetensors' files have them by type and name; some of the authors' end with what is no part of the network."""
    torch.manual_seed(0)
    network = build_model("l2tww_resnet32", 7, in_channels=1)
    state = network.state_dict()
    if order == "by name":
        state = dict(sorted(state.items()))
    elif order == "counters behind":
        state = dict(sorted(state.items(), key=lambda item: item[1].ndim == 0))
    else:
        state |= {"alphas.0": torch.zeros(3, 2, 1, 1)}
    torch.save(state, tmp_path / "weights.pt")
    sources = load_sources({"": SourceConfig("l2tww_resnet32", str(tmp_path / "weights.pt"))}, digits)
    (found,) = sources.networks
    assert sources.parts[0].num_classes == 7
    assert_same_state(dict(found.state_dict()), dict(network.state_dict()))


@pytest.mark.parametrize("prefix", ["", "model.backbone."])
def test_weights_without_a_classifier_are_a_source_but_not_for_lwf(digits, tmp_path, make_config, quiet, prefix):
    """As self-supervised training leaves them, as a part of a module too."""
    timm = pytest.importorskip("timm")
    plain = timm.create_model("test_resnet", num_classes=0, in_chans=1)
    torch.save({prefix + name: value for name, value in plain.state_dict().items()}, tmp_path / "weights.pt")
    config = SourceConfig("timm:test_resnet", str(tmp_path / "weights.pt"))
    sources = load_sources({"": config}, digits)
    assert sources.num_classes == [0] and sources.feature_names == ["layer1", "layer2", "layer3", "layer4"]
    assert_same_state(dict(sources.networks[0].state_dict()), dict(plain.state_dict()))
    run(make_config(source=config, epochs=1), progress=quiet)
    with pytest.raises(L2TFastError, match="lwf distils what a source answers, and the weights of a source have no"):
        run(make_config(source=config, method="lwf", out=str(tmp_path / "lwf")), progress=quiet)


def test_a_colour_network_may_be_the_source_of_grey_images(digits, checkpoint):
    colour = SourceConfig("resnet8", checkpoint(classes=4, in_channels=3), image_size=12)
    sources = load_sources({"grey": SourceConfig("resnet8", checkpoint()), "colour": colour}, digits)
    x, _ = next(iter(digits.train))
    logits, features = sources(x)
    assert [tuple(f.shape[1:]) for f in features[3:]] == [(16, 12, 12), (32, 6, 6), (64, 3, 3)]
    pixels = x * digits.std[0] + digits.mean[0]
    big = transforms.resize(pixels, [12, 12], antialias=True).expand(-1, 3, -1, -1)
    expected, _ = sources.networks[1](normalised(big, IMAGENET))
    torch.testing.assert_close(logits[1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("chosen", "said", "expected"),
    [
        (None, [[0.1], [0.2]], ((0.1,), (0.2,))),  # what the checkpoint was trained with
        ("data", [[0.1], [0.2]], None),
        ([[0.3], [0.6]], [[0.1], [0.2]], ((0.3,), (0.6,))),
        (None, None, None),  # a grey network has no convention: as the data
    ],
)
def test_where_the_normalisation_comes_from(digits, checkpoint, chosen, said, expected):
    also = {} if said is None else {"normalization": said}
    sources = load_sources({"": SourceConfig("resnet8", checkpoint(**also), normalization=chosen)}, digits)
    x = torch.randn(2, 1, 8, 8)
    prepared = sources.parts[0].prepare(x)
    if expected is None:
        assert torch.equal(prepared, x)
    else:
        mean, std = expected
        torch.testing.assert_close(prepared, (x * digits.std[0] + digits.mean[0] - mean[0]) / std[0])


def test_unit_rms_divides_each_map_by_one_number(digits, checkpoint):
    file = checkpoint()
    plain = load_sources({"": SourceConfig("resnet8", file)}, digits)
    scaled = load_sources({"": SourceConfig("resnet8", file, unit_rms=True)}, digits)
    x, _ = digits.train.dataset[0, np.arange(18)]  # all of the training images
    for before, after in zip(plain(x).features, scaled(x).features, strict=True):
        torch.testing.assert_close(after, before / before.square().mean().sqrt())
    other = torch.randn(2, 1, 8, 8)
    for before, after, scale in zip(plain(other).features, scaled(other).features, scaled.parts[0].scales, strict=True):
        assert torch.equal(after, before / scale)
    assert torch.equal(plain(x).logits[0], scaled(x).logits[0])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (SourceConfig("resnet8"), r"sources.a.checkpoint is not set: name the file with the weights of resnet8$"),
        (SourceConfig("resnet8", "default"), "resnet8 has no published weights that l2t-fast can find by itself"),
        (SourceConfig("torchvision:resnet18"), "the weights of torchvision:resnet18, or 'default' for those published"),
        (SourceConfig("resnet8", "/nowhere.pt"), "there is no checkpoint file /nowhere.pt"),
    ],
)
def test_sources_without_weights_are_named(digits, config, said):
    with pytest.raises(L2TFastError, match=said):
        load_sources({"a": config}, digits)


def test_mistakes_about_the_images_are_named(digits, checkpoint):
    wrong = SourceConfig("resnet8", checkpoint(), normalization=[list(IMAGENET_MEAN), list(IMAGENET_STD)])
    with pytest.raises(
        L2TFastError, match=r"sources.a \(resnet8\) has a normalisation of 3 numbers a row, but takes 1"
    ):
        load_sources({"a": wrong}, digits)
    colour = dataclasses.replace(digits, in_channels=3, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    with pytest.raises(L2TFastError, match="takes images of 1 channel, but the data's have 3: choose a source"):
        load_sources({"a": SourceConfig("resnet8", checkpoint())}, colour)
    other = SourceConfig("resnet20", checkpoint())
    with pytest.raises(L2TFastError, match="of another network"):
        load_sources({"a": other}, digits)


def test_published_weights_of_torchvision_come_from_its_cache(digits, tmp_path, monkeypatch):
    """The file that a download would make is put there first, so nothing is requested."""
    from torchvision.models import SqueezeNet1_1_Weights

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    network = build_model("torchvision:squeezenet1_1", 1000)
    torch.save(network.state_dict(), tmp_path / "hub" / "checkpoints" / Path(SqueezeNet1_1_Weights.DEFAULT.url).name)
    source = SourceConfig("torchvision:squeezenet1_1", "default", image_size=64)
    sources = load_sources({"": source}, digits)
    assert sources.num_classes == [1000]
    for name, value in sources.networks[0].state_dict().items():
        assert torch.equal(value, network.state_dict()[name])


def test_weights_that_cannot_be_downloaded_are_named(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*arguments, **options):
        raise OSError("no route")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(L2TFastError, match=r"published weights of torchvision:resnet18 could not be had \(no route\)"):
        load_sources({"": SourceConfig("torchvision:resnet18", "default")}, digits)


@pytest.fixture
def two(make_config, checkpoint, tmp_path):
    """A run of L2T-ww over digits from a grey ResNet-8 and a colour ResNet-8 that sees them larger."""
    files = {"grey": checkpoint(), "colour": checkpoint(classes=4, in_channels=3)}

    def make(**changes):
        sources = {
            "grey": SourceConfig("resnet8", files["grey"]),
            "colour": SourceConfig("resnet8", files["colour"], image_size=10, layers=["layer2.0"], unit_rms=True),
        }
        return make_config(**{"method": "l2t-ww", "source": SourceConfig(), "sources": sources, "epochs": 2} | changes)

    return make


def test_a_run_from_two_sources_trains_and_resumes_bit_for_bit(two, quiet, tmp_path):
    straight = run(two(out=str(tmp_path / "straight")), progress=quiet)
    layers = ["grey/layer1.0", "grey/layer2.0", "grey/layer3.0", "colour/layer2.0"]
    targets = build_model("vgg5bn", 3).feature_names
    assert straight["pairs"] == [f"{m}->{n}" for m in layers for n in targets]
    weights = read_rows(tmp_path / "straight" / "pair_weights.csv")
    assert [f"{row['source_layer']}->{row['target_layer']}" for row in weights] == 3 * straight["pairs"]
    with np.load(tmp_path / "straight" / "channel_weights.npz") as arrays:
        assert [len(w) for w in arrays.values()] == [16] * 3 + [32] * 3 + [64] * 3 + [32] * 3

    console = Console(file=StringIO(), width=200)
    inspect_run(tmp_path / "straight", console)
    shown = console.file.getvalue()
    for name, count in (("grey", 9), ("colour", 3)):
        own = [float(row["mean"]) for row in weights if row["epoch"] == str(straight["best_epoch"])]
        own = own[:9] if name == "grey" else own[9:]
        assert len(own) == count and re.search(rf"sum over {name} +│ +{sum(own):.3f} ", shown)
        first = [float(row["mean"]) for row in weights if row["epoch"] == "0"]
        first = first[:9] if name == "grey" else first[9:]
        assert re.search(rf"sum over {name} .*│ +{sum(first):.3f} ", shown)
    narrow = Console(file=StringIO(), width=80)
    inspect_run(tmp_path / "straight", narrow)
    table = [line.rstrip() for line in narrow.file.getvalue().splitlines() if "│" in line]
    assert all(len(line) <= 80 and line.endswith("│") for line in table)
    assert sum(len(re.findall(r"x\d\.\d\d", line)) for line in table) == 3 * 12  # none is cut

    assert "unit_rms divides the source's maps: colour/layer2.0 by" in (tmp_path / "straight" / "log.txt").read_text()

    page = build_report(tmp_path / "straight").read_text()
    assert "Which source: Σ λ over training" in page and "colour: resnet8, from resnet8-4-3.pt, side 10" in page

    with pytest.raises(KeyboardInterrupt):
        run(two(out=str(tmp_path / "broken")), progress=Interrupting(quiet, epoch=2))
    resumed = run(two(out=str(tmp_path / "broken")), resume=True, progress=quiet)
    assert {**resumed, "seconds": 0} == {**straight, "seconds": 0}
    for name in ("last.pt", "best.pt"):
        assert_same_state(*[load_checkpoint(tmp_path / f / "checkpoints" / name) for f in ("straight", "broken")])
    assert (tmp_path / "broken" / "pair_weights.csv").read_text() == (
        tmp_path / "straight" / "pair_weights.csv"
    ).read_text()

    with pytest.raises(L2TFastError, match=r"was made with sources.colour.image_size: 10, but now .* is 12"):
        other = two(out=str(tmp_path / "straight"))
        other.sources["colour"].image_size = 12
        run(other, resume=True, progress=quiet)


@pytest.mark.parametrize("method", ["fm", "lwf-at"])
def test_other_methods_take_two_sources(two, quiet, method):
    result = run(two(method=method, epochs=1), progress=quiet)
    assert 0 <= result["test_accuracy"] <= 1


def test_an_image_too_small_for_one_source_names_its_key(two, quiet, checkpoint):
    config = two()
    model = "torchvision:squeezenet1_1"
    config.sources["grey"] = SourceConfig(model, checkpoint(model, in_channels=3), image_size=2)
    with pytest.raises(
        L2TFastError, match=r"squeezenet1_1 cannot take images of 2x2 .*another sources.grey.image_size"
    ):
        Trainer(config, quiet)


def test_a_pretrained_source_says_how_its_images_were_normalised(make_config, quiet, tmp_path):
    run(make_config(method="scratch", epochs=1, out=str(tmp_path / "a")), progress=quiet)
    data = load_data(DataConfig())
    assert read_checkpoint(tmp_path / "a" / "checkpoints" / "best.pt").normalization == (data.mean, data.std)
