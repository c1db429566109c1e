"""Load weights that somebody else saved, and say plainly why when that cannot be done."""

import dataclasses
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from l2t_fast.errors import L2TFastError
from l2t_fast.files import check_archive, expand_user, is_archive
from l2t_fast.models.optional import optional_module
from l2t_fast.text import printable

# Where training scripts keep the weights inside a checkpoint.
STATE_DICT_KEYS = ("state_dict", "model", "model_state_dict", "net", "model_ema", "state_dict_ema")
# A file that says more of its network is not believed.
MOST_CLASSES, LARGEST_SIDE = 10**6, 2**16
# What wrappers put in front of every name: DataParallel, torch.compile.
WRAPPER_PREFIXES = ("module.", "_orig_mod.")
# torchvision's published DenseNets say "denselayer1.norm.1" for what the network calls "denselayer1.norm1", its ViTs
# "encoder_layer_0.mlp.linear_1" and "linear_2" for "encoder_layer_0.mlp.0" and "3".
OLD_NAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3."),
)


@dataclass(frozen=True)
class Checkpoint:
    """Weights of a network, and what they tell about its task.

    Attributes:
        shown: what messages call it
        weights: state dict, without the prefixes of wrappers
        num_classes: as the file says, else the length of its last tensor, which a classifier's is
        says_classes: whether the file says them
        in_channels: of the first convolution; None if there is none
        normalization: (mean, std) of the images it was trained on, one a channel, for pixels in 0 ... 1; None if the
            file does not say
        class_names: in the order of the logits; None if the file does not say
        image_sizes: (height and width of the images it was trained on, the shorter side of test images before that
            centre is taken); None if the file does not say
    """

    shown: str
    weights: Mapping[str, Tensor]
    num_classes: int | None = None
    says_classes: bool = False
    in_channels: int | None = None
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    class_names: tuple[str, ...] | None = None
    image_sizes: tuple[int, int] | None = None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a state dict or a checkpoint that holds one (``state_dict``, ``model``, ...), whoever saved it.

    Prefixes of DataParallel and torch.compile are taken off. The file is read with ``weights_only=True``, or by
    safetensors where its name ends so: no code in it runs.

    Raises ``L2TFastError`` if the file is missing, truncated or no checkpoint.
    """
    path = expand_user(path)
    shown = printable(path)
    content = _read(path)
    checkpoint = from_state_dict(_find_state_dict(content, shown), shown)
    said = content if isinstance(content, Mapping) else {}
    classes = said.get("num_classes")
    says = type(classes) is int and 0 < classes <= MOST_CLASSES
    return dataclasses.replace(
        checkpoint,
        num_classes=classes if says else checkpoint.num_classes,
        says_classes=says,
        normalization=_normalization(said),
        class_names=_class_names(said) if says else None,
        image_sizes=_image_sizes(said),
    )


def from_state_dict(weights: Mapping[str, Tensor], shown: str) -> Checkpoint:
    """A checkpoint of nothing but weights; messages call it ``shown``."""
    weights = _plain_names(weights)
    last = next(reversed(weights.values()))
    return Checkpoint(
        shown,
        weights,
        num_classes=last.shape[0] if last.ndim else None,
        in_channels=next((value.shape[1] for value in weights.values() if value.ndim == 4), None),
    )


def in_the_names_of(model: nn.Module, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint without what stands before every name, where the network's names are what is left.

    Whoever trained it had the network as a part of a module: Lightning's files say "model.conv1.weight".
    """
    known, weights = model.state_dict().keys(), checkpoint.weights
    while known.isdisjoint(weights):
        first, dots, rest = zip(*(name.partition(".") for name in weights), strict=True)
        if len(set(first)) > 1 or not all(dots):
            return checkpoint
        weights = dict(zip(rest, weights.values(), strict=True))
    return dataclasses.replace(checkpoint, weights=weights)


def in_the_order_of(model: nn.Module, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint told by the network's order of tensors: files may have another, safetensors' has them by name."""
    names = [name for name in model.state_dict() if name in checkpoint.weights]
    if not names:
        return checkpoint
    told = from_state_dict({name: checkpoint.weights[name] for name in names}, checkpoint.shown)
    classes = checkpoint.num_classes if checkpoint.says_classes else told.num_classes
    return dataclasses.replace(checkpoint, num_classes=classes, in_channels=told.in_channels)


def load_weights(model: nn.Module, checkpoint: str | Path | Checkpoint) -> None:
    """Load a checkpoint, or the file of one, into ``model``, in place; on an error the model is left as it was.

    Raises ``L2TFastError`` as ``read_checkpoint``, or if the checkpoint is that of another network.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = read_checkpoint(checkpoint)
    checkpoint = in_the_names_of(model, checkpoint)
    ignored = tuple(getattr(model, "ignored_checkpoint_prefixes", ()))
    weights = {name: v for name, v in checkpoint.weights.items() if not (ignored and name.startswith(ignored))}
    _check_fit(model, weights, checkpoint.shown)
    replace_weights(model, weights)  # files older than BatchNorm's batch counter lack it, all else was checked above


def replace_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a network some of its weights, by their names; the others stay."""
    # Its own state dict says too which version of its modules the names are of: MNASNets load nothing without.
    state = model.state_dict()
    state.update(weights)
    model.load_state_dict(state)


def _normalization(said: Mapping) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """What `l2t_fast.transfer.Trainer` writes beside the weights of a network that it trained; else None."""
    rows = said.get("normalization")
    if not isinstance(rows, list) or len(rows) != 2 or not all(isinstance(row, list) for row in rows):
        return None
    # A comparison that is also wrong of NaN, and of integers that no float holds.
    if not all(isinstance(v, int | float) and abs(v) < 1e6 for row in rows for v in row):
        return None
    if not all(v > 0 for v in rows[1]):
        return None
    return tuple(rows[0]), tuple(rows[1])


def _class_names(said: Mapping) -> tuple[str, ...] | None:
    names = said.get("class_names")
    if not isinstance(names, list) or len(names) != said["num_classes"] or not all(isinstance(n, str) for n in names):
        return None
    return tuple(map(printable, names))


def _image_sizes(said: Mapping) -> tuple[int, int] | None:
    sizes = said.get("image_sizes")
    if not isinstance(sizes, list) or len(sizes) != 2 or not all(type(size) is int for size in sizes):
        return None
    return tuple(sizes) if 0 < sizes[0] <= sizes[1] <= LARGEST_SIDE else None


def _read(path: Path) -> object:
    shown = printable(path)
    if not path.exists():
        raise L2TFastError(f"there is no checkpoint file {shown}")
    if not path.is_file():
        raise L2TFastError(f"{shown} is not a checkpoint file but a folder or a device")
    if path.stat().st_size == 0:
        raise L2TFastError(f"the checkpoint file {shown} is empty: copy it again")
    try:
        path.open("rb").close()
    except OSError as error:
        raise L2TFastError(f"the checkpoint file {shown} cannot be read: {error.strerror}") from error
    if path.suffix == ".safetensors":
        return _read_safetensors(path, shown)
    try:
        if is_archive(path):  # files of PyTorch before 1.6 are none
            check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if re.search("unsupported (global|class)", str(error), re.IGNORECASE):
            raise L2TFastError(
                f"the checkpoint file {shown} holds more than tensors and plain values, which is not loaded because it "
                "could run code: save the state dict alone"
            ) from error
        raise L2TFastError(_NOT_A_CHECKPOINT.format(shown)) from error
    except Exception as error:
        # A damaged file makes torch.load raise nearly anything (RuntimeError, EOFError, KeyError, OSError, ...).
        raise L2TFastError(_NOT_A_CHECKPOINT.format(shown)) from error


def _read_safetensors(path: Path, shown: str) -> dict[str, Tensor]:
    safetensors = optional_module("safetensors.torch", f"the checkpoint file {shown}", "safetensors")
    try:
        return safetensors.load_file(path)
    except Exception as error:
        raise L2TFastError(_NOT_A_CHECKPOINT.format(shown)) from error


_NOT_A_CHECKPOINT = "the file {} is truncated or no PyTorch checkpoint: copy it again, or name another"


def _find_state_dict(content: object, shown: str) -> Mapping[str, Tensor]:
    candidates = [content]
    if isinstance(content, Mapping):
        candidates += [content[key] for key in STATE_DICT_KEYS if key in content]
    for candidate in candidates:
        if (
            isinstance(candidate, Mapping)
            and candidate
            and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in candidate.items())
        ):
            _check_numbers(candidate, shown)
            return candidate
    raise L2TFastError(
        f"the checkpoint {shown} holds no weights: expected names with tensors, alone or under one of "
        f"{', '.join(STATE_DICT_KEYS)}"
    )


def _check_numbers(weights: Mapping[str, Tensor], shown: str) -> None:
    """Refuse tensors that no network has: a small file of these would make a network that fills the memory."""
    for name, value in weights.items():
        if value.is_nested or repeats_numbers(value):
            raise L2TFastError(f"the checkpoint {shown} holds {printable(name)} with fewer numbers than its shape says")


def repeats_numbers(tensor: Tensor) -> bool:
    """Whether it is larger than the memory that it lies in, as `torch.Tensor.expand` makes it."""
    if tensor.layout != torch.strided or tensor.is_meta:
        return False
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def _plain_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    plain = dict(weights)
    stripped = True
    while stripped:
        stripped = False
        for prefix in WRAPPER_PREFIXES:
            if all(name.startswith(prefix) for name in plain):
                plain = {name.removeprefix(prefix): value for name, value in plain.items()}
                stripped = True
    for old, new in OLD_NAMES:
        plain = {old.sub(new, name): value for name, value in plain.items()}
    return plain


def _check_fit(model: nn.Module, weights: Mapping[str, Tensor], shown: str) -> None:
    expected = model.state_dict()
    problems = []
    missing = [name for name in expected if name not in weights and not name.endswith(".num_batches_tracked")]
    if missing:
        problems.append(f"it lacks {_some(missing)}")
    unexpected = [name for name in weights if name not in expected]
    if unexpected:
        problems.append(f"it has {_some([printable(name) for name in unexpected])}, which the network does not")
    wrong_shape = [
        f"{name} {tuple(weights[name].shape)} where the network has {tuple(value.shape)}"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if wrong_shape:
        problems.append(f"it has {_some(wrong_shape, 2)}")
    wrong_kind = [
        f"{name} as {_kind(weights[name])} where the network has {_kind(value)}"
        for name, value in expected.items()
        if name in weights and _kind(weights[name]) != _kind(value)
    ]
    if wrong_kind:
        problems.append(f"it has {_some(wrong_kind, 2)}")
    if problems:
        raise L2TFastError(f"the checkpoint {shown} is of another network: {'; '.join(problems)}")
    not_finite = [
        name
        for name, value in weights.items()
        if value.is_floating_point() and not value.to(expected.get(name, value).dtype).isfinite().all()
    ]
    if not_finite:
        raise L2TFastError(f"the checkpoint {shown} holds NaN or infinite values in {_some(not_finite)}")


def _kind(value: Tensor) -> str:
    """What a tensor is made of, in any width: one kind cannot be taken for another."""
    if value.is_meta:
        return "a tensor without numbers"
    if value.is_quantized:
        return "quantised numbers"
    if value.layout != torch.strided:
        return "a sparse tensor"
    return "floats" if value.is_floating_point() else "complex numbers" if value.is_complex() else "integers"


def _some(names: list[str], most: int = 3) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
