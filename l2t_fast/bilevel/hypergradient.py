"""``hypergradient``: how the meta networks should change, judged by where the look-ahead ends."""

import contextlib
import operator
import sys
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from l2t_fast.bilevel.exact import Exact
from l2t_fast.bilevel.finite_difference import FiniteDifference
from l2t_fast.bilevel.locking import alone_in
from l2t_fast.bilevel.nested import double_backward
from l2t_fast.bilevel.problem import BilevelProblem, Criterion, is_module
from l2t_fast.bilevel.transposition import transposed
from l2t_fast.checks import listed_features, shown
from l2t_fast.convolution import fast_convolutions
from l2t_fast.distributed.group import WHOLE, Part, pieces
from l2t_fast.interrupts import deferred_interrupts
from l2t_fast.ops import inside_transform

METHODS = ("exact", "finite_difference", "double_backward")

#: Frames from a warning to who called `hypergradient`: the function that warns, it, and two of its decorator.
_STACKLEVEL = 5


@torch._disable_dynamo  # a step that torch.compile takes runs it as it is
def hypergradient(
    target: nn.Module,
    matching: nn.Module,
    meta: nn.Module,
    optimizer: torch.optim.SGD,
    source_features: Sequence[Tensor],
    x: Tensor,
    y: Tensor,
    *,
    steps: int = 2,
    beta: float = 0.5,
    method: str = "exact",
    criterion: Criterion | None = None,
    keep_graphs: bool = False,
    accumulation: int = 1,
    capturable: bool = False,
    part: Part = WHOLE,
) -> list[Tensor]:
    """d task loss(theta_end) / d phi through ``steps`` SGD steps on beta L_wfm, one on the task's loss (section 2).

    The task's loss is the mean cross-entropy, or ``criterion``. All steps, and the task's loss at their end, use the
    one batch (x, y). The SGD is the optimizer's: learning rate, momentum with its present buffers, dampening, Nesterov
    and weight decay of each parameter group. A parameter that a loss does not reach steps with gradient 0, so weight
    decay and momentum still move it. On a CPU, "exact" and "finite_difference" compute 3x3 convolutions in float32 by
    the kernels of :mod:`l2t_fast.convolution`.

    Targets may stop gradients and hang hooks into their backward pass, and may keep state in buffers, which goes from
    pass to pass as in training (from the same start in each piece of an ``accumulation``). Not looked for, and wrong
    without a word, in target and criterion: with all methods, hooks of parameters and of the optimizer, which are not
    called, a forward pass that writes to parameters, and the ``weight`` of ``l1_loss``, which PyTorch drops while
    anybody looks at its calls; with "exact" and "double_backward", a function that is
    ``once_differentiable``, whose second derivative counts as zero; with "exact" and "finite_difference", a random
    generator of their own, and in a ``torch.jit.script`` function ``torch.no_grad()``; with "finite_difference", a
    ``torch.autograd.Function`` whose backward pass is not its derivative (a straight-through estimator), what stops
    gradients in a function of PyTorch (``gumbel_softmax(hard=True)``), under ``torch.func.vmap`` or in a scripted
    function, and what picks elements along a dimension (``max``, ``topk``). It refuses hooks in the backward pass.

    Call it outside of ``torch.autocast``: in it, "exact" and "double_backward" run their forward passes in the lower
    precision, and rounded features point a second derivative elsewhere (by 20 % for a VGG5-BN on 8x8 pixels, one-off).

    Meanwhile the modules have other parameters, which another thread that called them would meet. Calls of this
    function wait for each other where they share a module.

    Modules that ``torch.compile`` has made run as what they were made of. Functions that it has made and a module calls
    are refused by "finite_difference", and with the others by PyTorch if their backend has no second derivative.

    Args:
        target: ``target(x)`` returns (logits (B, classes), features), in the mode (train or eval) it is in. Logits may
            be of each pixel, (B, classes, H, W), and labels too, (B, H, W); with ``criterion`` any tensor.
        matching: called as ``matching(source_features, features, channel_weights, beta a pair, pair_weights)``, such as
            :class:`l2t_fast.FeatureMatching`.
        meta: ``meta(source_features)`` returns (channel_weights, pair_weights or None), such as
            :class:`l2t_fast.MetaNetworks`. Its parameters are phi.
        optimizer: the SGD that holds target's and matching's parameters; where another optimizer trains them, an SGD of
            the same parameters for the look-ahead alone, which takes no step itself. A warning names trainable ones of
            matching that it does not have, which stay as they are.
        source_features: the source network's maps of x, computed once; no gradient flows to them.
        x: the batch's images (B, ...).
        y: its labels (B,), int64, or probabilities of the classes (B, classes), as mixed images have; in pieces, or
            where several ranks hold the batch, without PyTorch's -100 for labels that do not count. With ``criterion``
            any tensor.
        steps: T, the number of look-ahead steps on the matching loss, 0 or more (the paper's 2).
        beta: weight of the matching loss (the paper's 0.5).
        method: "exact" (Hessian-vector products of one step at a time), "finite_difference" (first-order passes only,
            in full float32 whatever autocast and TF32 say; its cosine with exact is above 0.999 as a rule) or
            "double_backward" (one nested graph, the slow oracle). The second alone serves a target with an operation
            that has no second derivative, such as a deformable convolution. The first and the last agree to rounding:
            in float32 a unit whose input is within rounding of a rectifier's kink may be on in one and off in the
            other, which moves a hypergradient by percents; compare in float64.
        criterion: the task's loss in place of the cross-entropy, ``criterion(logits, y)``, such as
            ``nn.CrossEntropyLoss(label_smoothing=0.1)``, a loss of regression or of each pixel. Logits come in float32
            at least, outside of autocast, and what else it reads of the target counts as constant, but for what the
            target's forward pass has left there. It returns a mean over the images, (): in pieces or on several ranks
            it is called with some of them, and each image counts alike. Means over the pixels or labels that count
            (``ignore_index``, ``weight`` of classes) are none, and right for whole batches only. Parameters of its own
            stay as they are, buffers of a module too; it must keep no other state.
        keep_graphs: of "exact": keep every step's graph, not only the last one's, instead of making it again: a tenth
            less arithmetic at T = 2 for the activations of one more step a look-ahead step. The others ignore it.
        accumulation: number of pieces in which the batch goes through the networks, one after the other; memory is that
            of one piece. Batch normalisation in training mode normalises each piece by itself, otherwise the result is
            the same to rounding.
        capturable: "finite_difference" looks at its differences, and where rounding would show in one makes that pass
            again; set it for calls that a CUDA graph captures, or that must do as those do, and nothing is made again.
            The others read no number of the device in any case.
        part: which part of the batch (x, y) and the source's maps are, where several ranks hold one together
            (``group.part(len(x))`` of a :class:`l2t_fast.distributed.Group`). All ranks call this function at the same
            time and get the hypergradient of the joined batch, with one reduction a look-ahead step and one more for
            each Hessian-vector product. Where this rank has pairs of its own (``group.part(len(x), own_pairs=True)``),
            matching, meta and the optimizer hold those alone, ``source_features`` are the maps of their sources for the
            images of all ranks (:meth:`l2t_fast.distributed.Part.joined_images`), and the result is of this rank's phi.
            A rank without a pair takes `l2t_fast.distributed.NoPairs` and `NoWeights`.

    Returns:
        One tensor a parameter of meta, in the order of ``meta.parameters()``; zeros where there is no dependence.
        Parameters, buffers, their gradients and the optimizer's state are left bit for bit as they were, by Ctrl-C
        too, which waits for the end of a pass. PyTorch's, NumPy's and Python's global random generators advance as by
        steps + 2 forward passes.

    Raises:
        ValueError: an unknown method, negative steps, no piece, or an optimizer that maximizes or has no parameter of
            target; a loss of criterion without a derivative (in all pieces; on several ranks nobody looks), or without
            it logits of fewer than two classes; with "finite_difference" hooks in the target's backward pass, a
            compiled function, writing in place
            without a derivative into what has one, parameters in half precision, or computing in a lower one than that
            of the parameters; with several ranks, batch normalisation of target that was not synchronized, or that was
            and no part, or other images than part's; with pieces, a number of labels or maps that is not that of the
            images.
        TypeError: an optimizer other than torch.optim.SGD, or a subclass with a step of its own; criterion cannot be
            called, or returns something other than one number; without it, y are no labels; beta is not a number,
            steps or accumulation no whole one; target, matching or meta is no module, or in DataParallel,
            DistributedDataParallel or Fabric's wrapper, or has parameters divided among ranks (FSDP); x or y no tensor;
            source_features, or what target, matching or meta returns, is not what it must be.
        RuntimeError: called in ``torch.inference_mode()``, where nothing can be differentiated, in a transform of
            ``torch.func``, or in ``torch.nn.utils.parametrize.cached()``, which would keep what the first parameters
            made; or a module uses ``torch.utils.checkpoint``, which would run again by parameters that the look-ahead
            has left by then.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is not known, choose one of {', '.join(METHODS)}")
    steps, accumulation = _whole("steps", steps), _whole("accumulation", accumulation)
    if steps < 0:
        raise ValueError(f"steps={steps} look-ahead steps are not possible, use 0 or more")
    if accumulation < 1:
        raise ValueError(f"accumulation={accumulation} pieces of a batch are not possible, use 1 or more")
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "hypergradient differentiates, which torch.inference_mode() forbids; torch.no_grad() is fine"
        )
    if inside_transform():
        raise RuntimeError(
            "hypergradient differentiates by itself, which torch.func's transforms forbid: call it outside"
        )
    if parametrize._cache_enabled:
        raise RuntimeError(
            "hypergradient gives modules other parameters, of which torch.nn.utils.parametrize.cached() would not make "
            "their tensors anew; call it outside of that"
        )
    for name, module in (("target", target), ("matching", matching), ("meta", meta)):
        _check_type(name, module, nn.Module, "a torch.nn.Module")
        _check_whole(name, module)
    if isinstance(source_features, Tensor):  # it has rows, which are no maps
        raise TypeError("source_features must be a list of tensors (B, C, H, W), not Tensor")
    source_features = listed_features("source_features", source_features)
    for i, feature in enumerate(source_features):
        _check_type(f"source_features[{i}]", feature, Tensor, "a tensor (B, C, H, W)")
    if isinstance(criterion, type):
        raise TypeError(f"criterion is the class {criterion.__name__}, give an object of it: {criterion.__name__}()")
    if criterion is not None and not callable(criterion):
        raise TypeError(f"criterion must be a function of (logits, y), not {type(criterion).__name__}")
    _check_type("x", x, Tensor, "a tensor of images (B, ...)")
    _check_type("y", y, Tensor, "a tensor of labels (B,)" if criterion is None else "one tensor, for criterion")
    source_features, x, y = [_plain(feature) for feature in source_features], _plain(x), _plain(y)
    if part.images != part.joined:  # a share of a batch: the losses would be weighed as if x were all of it
        _check_rows("x", x, part.images)
    if accumulation > 1:  # otherwise the networks and losses tell
        _check_rows("y", y, len(x))
        for i, feature in enumerate(source_features):
            _check_rows(f"source_features[{i}]", feature, len(x) if part.sizes is None else part.matched)
    differences = method == "finite_difference"
    modules = [target, matching, meta, *([criterion] if is_module(criterion) else [])]
    with deferred_interrupts(), alone_in(*modules):
        problems = [
            BilevelProblem(
                target,
                matching,
                optimizer,
                maps,
                x_piece,
                y_piece,
                beta,
                criterion=criterion,
                autocast=not differences,
                part=piece,
            )
            for piece, (x_piece, y_piece), maps in pieces(part, accumulation, [x, y], source_features)
        ]
        dtype = problems[0].dtype
        _warn_of_missing(matching, optimizer)
        if not differences and dtype == torch.float32:
            _warn_of_autocast(method, x.device.type)
        if differences and torch.finfo(dtype).eps > torch.finfo(torch.float32).eps:
            raise ValueError(
                f"method='finite_difference' needs parameters in float32 or float64, but most of target's are in "
                f"{dtype}, in which a step of epsilon is rounded away; method='exact' takes them"
            )
        # Autocast is for forward passes, which the problem runs under the caller's.
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            if method == "double_backward":
                return double_backward(problems, meta, source_features, steps)
            with fast_convolutions(x.device):
                if method == "exact":
                    return transposed(problems, meta, source_features, steps, Exact(keep_graphs=keep_graphs))
                with _full_float32():
                    return transposed(problems, meta, source_features, steps, FiniteDifference(capturable=capturable))


def _warn_of_missing(matching: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Tell which trainable parameters of matching the optimizer does not have: mostly one that was made too early."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [name for name, p in matching.named_parameters() if p.requires_grad and id(p) not in held]
    if missing:
        warnings.warn(
            f"the optimizer does not hold matching's {shown(missing)}, so the look-ahead leaves them as they are: "
            "give it matching.parameters() too, or call matching.requires_grad_(False)",
            stacklevel=_STACKLEVEL,
        )


def _warn_of_autocast(method: str, device: str) -> None:
    """Frameworks call a training step in theirs, and nobody sees it."""
    if torch.is_autocast_enabled(device):
        warnings.warn(
            f"hypergradient is called in torch.autocast, where method={method!r} rounds its forward passes to "
            f"{torch.get_autocast_dtype(device)}, whose second derivatives point elsewhere: call it in "
            f"torch.autocast({device!r}, enabled=False)",
            stacklevel=_STACKLEVEL,
        )


def _check_whole(name: str, module: nn.Module) -> None:
    """Refuse a module that wraps another, or of which this rank holds a part."""
    wraps = isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel)
    if wraps or type(module).__name__ == "_FabricModule":  # of Lightning
        raise TypeError(
            f"{name} must be the module itself, not a {type(module).__name__}: give {name}.module, and part where "
            "several ranks hold the batch"
        )
    fsdp = sys.modules.get("torch.distributed.fsdp")  # who has not imported it shards nothing
    kinds = () if fsdp is None else (fsdp.FSDPModule, fsdp.FullyShardedDataParallel)
    divided = any(isinstance(part, kinds) for part in module.modules())
    if divided or any(hasattr(parameter, "full_tensor") for parameter in module.parameters()):
        raise TypeError(
            f"{name} has its parameters divided among ranks (fully_shard, FSDP, DTensor), which hypergradient cannot "
            "give other values: keep it whole on each rank, and sum gradients with Group.sum_ or "
            "DistributedDataParallel"
        )


def _check_type(name: str, value: object, kind: type, wanted: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {wanted}, not {type(value).__name__}")


def _plain(tensor: Tensor) -> Tensor:
    """Without the class that a library of images gives its batches: what Functions return would be views of that class.

    A class that is more than a name, such as a distributed tensor's, stays.
    """
    more = type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__
    return tensor if more or type(tensor) is Tensor else tensor.as_subclass(Tensor)


def _check_rows(name: str, tensor: Tensor, images: int) -> None:
    if tensor.dim() == 0 or len(tensor) != images:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, which is not a row for each of {images} images")


def _whole(name: str, value: int) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {value!r}") from None


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """No TF32 and no bfloat16 in convolutions and matrix products, by whichever of PyTorch's two sets of names is used.

    A CPU's are lowered by the newer names, and products by ``torch.set_float32_matmul_precision`` too.
    """
    cudnn, mkldnn, matmul = torch.backends.cudnn, torch.backends.mkldnn, torch.backends.cuda.matmul
    settings = [mkldnn.conv, mkldnn.rnn]  # which have no older name
    try:
        before = cudnn.allow_tf32, torch.get_float32_matmul_precision()
    except RuntimeError:  # the newer names have been used, beside which the older ones refuse to answer
        before = None
        settings += [mkldnn.matmul, cudnn.conv, cudnn.rnn, matmul]
    kept = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        if before is not None:
            cudnn.allow_tf32 = False
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        for setting, precision in zip(settings, kept, strict=True):
            setting.fp32_precision = precision
        if before is not None:
            cudnn.allow_tf32 = before[0]
            torch.set_float32_matmul_precision(before[1])
