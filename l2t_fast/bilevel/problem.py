"""One batch's bilevel problem as pure functions of theta: what every hypergradient method works on."""

import functools
import inspect
import numbers
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from l2t_fast.bilevel.calling import by_name, call, differentiable_twice, names_of
from l2t_fast.bilevel.lookahead import RandomState, SGDSettings
from l2t_fast.checks import UNORDERED, checked_number
from l2t_fast.distributed.batch_norm import ranks_of_statistics, unsynchronized
from l2t_fast.distributed.group import WHOLE, Part
from l2t_fast.distributed.joint_sum import joint_sum

Theta = list[Tensor]
HeadWeights = Sequence[Sequence[Tensor] | None]
"""(channel weights, pair weights), or None where there are none: what the meta networks return."""
Criterion = Callable[[Tensor, Tensor], Tensor]
"""(logits, y) -> the task's loss, a mean over the images."""
Moment = tuple[RandomState, dict[str, Tensor | None], dict[str, Tensor | None]]
"""What a pass starts from beside theta: the random generators, the target's buffers and the criterion's."""


class BilevelProblem:
    """theta is the optimizer's trainable parameters of the target network and of the projections, in its order.

    Nothing here changes the modules: they are called with other parameters, and with a copy of their buffers, so that
    BatchNorm's running statistics are those from before the call, whatever the look-ahead does. The target's buffers
    go from pass to pass as they do in training.

    Where several ranks hold parts of the batch, the losses are this rank's shares, and so are their gradients:
    :meth:`joined_` makes those of the joined batch. Where each rank has pairs of its own, ``source_features`` are those
    of its sources for the images of all ranks, and what belongs to its pairs is summed with nobody.
    """

    def __init__(
        self,
        target: nn.Module,
        matching: nn.Module,
        optimizer: torch.optim.SGD,
        source_features: Sequence[Tensor],
        x: Tensor,
        y: Tensor,
        beta: float,
        *,
        criterion: Criterion | None = None,
        autocast: bool = True,
        part: Part = WHOLE,
    ) -> None:
        kind = type(optimizer)
        inner = getattr(optimizer, "optimizer", None)  # of what Lightning and accelerate make of one
        if isinstance(inner, torch.optim.SGD) and kind.step is not torch.optim.SGD.step:
            raise TypeError(
                f"optimizer must be torch.optim.SGD, not a {kind.__name__} of one: give optimizer.optimizer"
            )
        if not isinstance(optimizer, torch.optim.SGD):
            raise TypeError(
                f"optimizer must be torch.optim.SGD, not {kind.__name__}: beside another one, give an SGD of the same "
                "parameters that takes no step, for its learning rate is the look-ahead's"
            )
        if inspect.unwrap(kind.step) is not inspect.unwrap(torch.optim.SGD.step):
            raise TypeError(
                f"optimizer must step as torch.optim.SGD does, but {kind.__name__} has a step of its own, which the "
                "look-ahead would not take: train with torch.optim.SGD, whose load_state_dict takes this one's momentum"
            )
        if not isinstance(beta, numbers.Real):
            raise TypeError(f"beta must be one number, the weight of the matching loss, not {type(beta).__name__}")
        self._target, self._matching = target, matching
        self._target_buffers, self._matching_buffers = by_name(target, "buffers"), by_name(matching, "buffers")
        self._source_features = [s.detach() for s in source_features]
        self._x, self._y, self._beta = x, y, checked_number("beta", beta) * part.matched_share
        # What torch.compile has made of a function tells neither what it calls nor a second derivative.
        self._criterion = getattr(criterion, "_torchdynamo_orig_callable", criterion)
        self._criterion_buffers = by_name(criterion, "buffers") if is_module(criterion) else {}
        self.teaches = True  # whether the task's loss had a derivative by the logits, the last time it was made
        self._part = part
        alone = unsynchronized(target) if part.group.size > 1 else None
        if alone is not None:
            raise ValueError(
                f"batch normalisation {alone} of target would take the statistics of this rank's images alone, call "
                "l2t_fast.distributed.synchronize_batch_norm(target, group) first"
            )
        if target.training and part.group.size < (ranks := ranks_of_statistics(target)):
            raise ValueError(
                f"batch normalisation of target takes the statistics of {ranks} ranks' images, but part says that x is "
                "the whole batch: give part=group.part(len(x))"
            )
        # Autocast as it is where hypergradient is called; backward passes run without it.
        self._device = x.device.type
        self._autocast_dtype = torch.get_autocast_dtype(self._device)
        self._autocast = autocast and torch.is_autocast_enabled(self._device)

        target_names, matching_names = names_of(target), names_of(matching)
        self.theta: Theta = []
        self.buffers: list[Tensor | None] = []
        self.settings: list[SGDSettings] = []
        self._target_slots: list[tuple[int, list[str]]] = []
        self._matching_slots: list[tuple[int, list[str]]] = []
        for group in optimizer.param_groups:
            settings = SGDSettings.of_group(group)
            for parameter in group["params"]:
                in_target, in_matching = target_names.get(id(parameter)), matching_names.get(id(parameter))
                if not parameter.requires_grad or (in_target is None and in_matching is None):
                    continue  # the look-ahead losses cannot depend on it
                slot = len(self.theta)
                if in_target is not None:
                    self._target_slots.append((slot, in_target))
                if in_matching is not None:
                    self._matching_slots.append((slot, in_matching))
                self.theta.append(parameter.detach())
                self.buffers.append(optimizer.state.get(parameter, {}).get("momentum_buffer"))
                self.settings.append(settings)
        if not self._target_slots:
            raise ValueError("the optimizer holds no trainable parameter of the target network")

    def autocast(self) -> torch.autocast:
        """The caller's autocast, for forward passes. Its cache of cast weights would mix up several thetas."""
        return torch.autocast(self._device, self._autocast_dtype, self._autocast, cache_enabled=False)

    @functools.cached_property
    def dtype(self) -> torch.dtype:
        """The passes' precision: the real type of most of the target's parameters, whatever their order and size."""
        counts = Counter(self.theta[slot].dtype.to_real() for slot in self.target_slots)
        return max(counts, key=counts.__getitem__)

    @property
    def matched(self) -> int:
        """How many images the matching loss is over: those of x, or of all ranks."""
        return len(self._x) if self._part.sizes is None else self._part.matched

    @property
    def joint(self) -> bool:
        """Whether several ranks hold parts of the batch."""
        return self._part.group.size > 1

    @property
    def device(self) -> torch.device:
        """Where the batch is."""
        return self._x.device

    @property
    def target_slots(self) -> list[int]:
        """Which entries of theta belong to the target network; the others are projections."""
        return [slot for slot, _ in self._target_slots]

    @property
    def matching_slots(self) -> list[int]:
        """Which entries of theta belong to the projections."""
        return [slot for slot, _ in self._matching_slots]

    def run_target(self, theta: Theta) -> tuple[Tensor, list[Tensor]]:
        """(logits, features) of the target network with the parameters theta, in its own training or eval mode."""
        parameters = {name: theta[slot] for slot, names in self._target_slots for name in names}
        with self.autocast():
            found, self._target_buffers = call(self._target, parameters, self._target_buffers, (self._x,))
        logits, features = _pair(found, "target", "(logits, features)")
        if not isinstance(logits, Tensor) or not _many(features):
            raise TypeError(
                "target must return (logits, features), a tensor and a list of maps, not "
                f"({type(logits).__name__}, {type(features).__name__})"
            )
        return logits, list(features)

    def moment(self) -> Moment:
        """What the next pass starts from."""
        return RandomState(self.device), self._target_buffers, self._criterion_buffers

    def go_back(self, moment: Moment) -> None:
        """The next pass starts from there: with the same dropout, and the same buffers."""
        random_state, self._target_buffers, self._criterion_buffers = moment
        random_state.restore()

    def head_weights(self, meta: nn.Module, source_features: Sequence[Tensor]) -> HeadWeights:
        """The meta networks' channel and pair weights of source maps, of several pieces too."""
        with self.autocast():
            found = call(meta, {}, by_name(meta, "buffers"), (source_features,))[0]
            weights = _pair(found, "meta", "(channel_weights, pair_weights)")
            if not all(w is None or _many(w) for w in weights):
                raise TypeError(
                    "meta must return (channel_weights, pair_weights), each a list or None, not "
                    f"({', '.join(type(w).__name__ for w in weights)})"
                )
            listed = [None if w is None else list(w) for w in weights]  # of a generator, under autocast too
        for name, tensors in zip(("channel_weights", "pair_weights"), listed, strict=True):
            for p, tensor in enumerate(tensors or ()):
                if not isinstance(tensor, Tensor):
                    raise TypeError(
                        f"meta must return lists of tensors, but its {name}[{p}] is a {type(tensor).__name__}"
                    )
        return listed

    def task_loss(self, logits: Tensor) -> Tensor:
        """The criterion of what the target has returned and y: mean cross-entropy against labels, if there is none."""
        if logits.is_floating_point() and logits.dtype != torch.float64:
            logits = logits.float()  # at least, as autocast does it
        if self._criterion is None:
            self._check_labels(logits)
            return self._part.cross_entropy(logits, self._y)
        if len(self._x) == 0:  # of which there is no mean
            return (logits * 0).sum()
        if is_module(self._criterion):
            loss, self._criterion_buffers = call(self._criterion, {}, self._criterion_buffers, (logits, self._y))
        else:
            with differentiable_twice():
                loss = self._criterion(logits, self._y)
        _check_loss(loss)
        self.teaches = loss.requires_grad or not logits.requires_grad
        if not self.teaches:  # nothing in this piece counts, perhaps
            loss = loss + (logits * 0).sum()
        return self._part.share_of(loss)

    def _check_labels(self, logits: Tensor) -> None:
        """Refuse what cross-entropy would take for classes without a word."""
        if logits.dim() < 2 or logits.shape[1] < 2:
            raise ValueError(
                "the task's loss is cross-entropy, of logits (B, classes, ...) with two classes or more, but target "
                f"returned {tuple(logits.shape)}: give criterion for another task"
            )
        if self._y.dtype == torch.uint8:  # as images of classes have them
            self._y = self._y.long()
        if not (self._y.is_floating_point() or self._y.dtype == torch.int64):
            raise TypeError(f"y must be labels in int64, or probabilities of the classes, not {self._y.dtype}")

    def joined_(self, gradients: Sequence[Tensor | None], *, last: bool) -> None:
        """Make d loss / d theta, or a Hessian times a vector, of this rank's share that of the joined batch, in place.

        One reduction. ``last`` tells that the loss is the task's, which no projection is part of.
        """
        slots = self.target_slots if last or self._part.sizes is not None else range(len(gradients))
        self._part.group.sum_([g for g in (gradients[i] for i in slots) if g is not None])

    def joined(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """`joined_` with new tensors, differentiable."""
        found = list(gradients)
        if self._part.group.size == 1:
            return found
        slots = range(len(found)) if self._part.sizes is None else self.target_slots
        flat = joint_sum(torch.cat([found[i].reshape(-1) for i in slots]), self._part.group)
        for i, piece in zip(slots, flat.split([found[i].numel() for i in slots]), strict=True):
            found[i] = piece.view(found[i].shape)
        return found

    def phi_joined_(self, gradients: Sequence[Tensor]) -> None:
        """Make the gradient of phi that of the joined batch, in place; that of own pairs is so already."""
        if self._part.sizes is None:
            self._part.group.sum_(gradients)

    @torch.no_grad()
    def norms(self, *vectors: Sequence[Tensor]) -> list[Tensor]:
        """The length () of vectors like theta. Where ranks have projections of their own, one reduction joins them."""
        norm = torch.nn.utils.get_total_norm
        if self._part.sizes is None:
            return [norm(list(vector)) for vector in vectors]
        of_target = [norm([vector[i] for i in self.target_slots]) for vector in vectors]
        own = [i for i in self.matching_slots if i not in set(self.target_slots)]
        of_own = torch.stack([norm([v[i] for i in own]) if own else torch.zeros_like(of_target[0]) for v in vectors])
        squares = of_own.square()
        self._part.group.sum_([squares])
        return [(a.square() + b).sqrt() for a, b in zip(of_target, squares, strict=True)]

    def lengths_of_shares(self, *vectors: Sequence[Tensor]) -> Tensor:
        """The root of the sum of squares over each vector's entries and over the ranks: (vectors,), on all alike."""
        norm = torch.nn.utils.get_total_norm
        zero = torch.zeros((), dtype=self.dtype, device=self.device)  # a rank without pairs has no weights
        lengths = torch.stack([norm(list(vector)) if vector else zero for vector in vectors])
        if not self.joint:
            return lengths
        squares = lengths.square()
        self._part.group.sum_([squares])
        return squares.sqrt()

    def gathered(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The target's maps of the images that the matching loss is over, see :meth:`Part.gathered`."""
        return self._part.gathered(maps)

    def matching_loss(
        self,
        matching_parameters: Sequence[Tensor],
        features: Sequence[Tensor],
        channel_weights: Sequence[Tensor] | None,
        pair_weights: Sequence[Tensor] | None,
    ) -> Tensor:
        """beta L_wfm. ``matching_parameters`` are theta's entries at :attr:`matching_slots`, features are gathered."""
        slots = zip(self._matching_slots, matching_parameters, strict=True)
        parameters = {name: parameter for (_, names), parameter in slots for name in names}
        arguments = (self._source_features, features, channel_weights, self._beta_argument(), pair_weights)
        loss = call(self._matching, parameters, self._matching_buffers, arguments)[0]
        if not isinstance(loss, Tensor):
            raise TypeError(f"matching must return the loss, a tensor, not a {type(loss).__name__}")
        return loss

    def _beta_argument(self) -> float | list[float]:
        # The authors' FeatureMatching indexes beta by the pair, ours takes both.
        pairs = getattr(self._matching, "pairs", None)
        return self._beta if pairs is None else [self._beta] * len(pairs)

    def lookahead_loss(
        self,
        theta: Theta,
        channel_weights: Sequence[Tensor] | None,
        pair_weights: Sequence[Tensor] | None,
        *,
        last: bool,
    ) -> Tensor:
        """The loss of one look-ahead step: beta L_wfm, or the task's on the last one."""
        return self.loss_of(self.run_target(theta), theta, channel_weights, pair_weights, last=last)

    def loss_of(
        self,
        outputs: tuple[Tensor, list[Tensor]],
        theta: Theta,
        channel_weights: Sequence[Tensor] | None,
        pair_weights: Sequence[Tensor] | None,
        *,
        last: bool,
    ) -> Tensor:
        """:meth:`lookahead_loss`, of what the target has returned."""
        logits, features = outputs
        if last:
            return self.task_loss(logits)
        parameters = [theta[i] for i in self.matching_slots]
        return self.matching_loss(parameters, self.gathered(features), channel_weights, pair_weights)

    def step(
        self, theta: Theta, gradients: Sequence[Tensor], buffers: list[Tensor | None]
    ) -> tuple[Theta, list[Tensor | None]]:
        """One SGD step on every entry of theta, differentiable."""
        stepped = [s.step(p, g, b) for s, p, g, b in zip(self.settings, theta, gradients, buffers, strict=True)]
        return [theta for theta, _ in stepped], [buffer for _, buffer in stepped]

    def step_(
        self, theta: Theta, gradients: Sequence[Tensor], buffers: list[Tensor | None]
    ) -> tuple[Theta, list[Tensor | None]]:
        """One SGD step on every entry of theta, without a graph; the gradients' memory is used up."""
        stepped: Theta = list(theta)
        later: list[Tensor | None] = [None] * len(theta)
        for settings, fresh, slots in self._alike(buffers):
            _put(
                settings.step_(
                    [theta[i] for i in slots],
                    [gradients[i] for i in slots],
                    None if fresh else [buffers[i] for i in slots],
                ),
                (stepped, later),
                slots,
            )
        return stepped, later

    def transpose_(
        self, theta_bar: Sequence[Tensor], buffer_bars: Sequence[Tensor | None], *, first: bool
    ) -> tuple[Theta, Theta, list[Tensor | None]]:
        """:meth:`SGDSettings.transpose_` for every entry of theta. ``first``: of the look-ahead's first step."""
        directions, direct = list(theta_bar), list(theta_bar)
        totals: list[Tensor | None] = [None] * len(direct)
        for settings, fresh, slots in self._alike(self.buffers):
            bars = [buffer_bars[i] for i in slots]
            known = None if bars[0] is None else bars  # those of one optimizer group come together
            stepped = settings.transpose_([theta_bar[i] for i in slots], known, first=first and fresh)
            _put(stepped, (directions, direct, totals), slots)
        return directions, direct, totals

    def earlier_(self, totals: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The adjoints of the momenta before a step, in the memory of `transpose_`'s last result (None for zero)."""
        for settings, missing, slots in self._alike(totals):
            if not missing:
                settings.earlier_([totals[i] for i in slots])
        return list(totals)

    def _alike(self, tensors: Sequence[Tensor | None]) -> Iterator[tuple[SGDSettings, bool, list[int]]]:
        """The entries of theta with the same settings of whose ``tensors`` all are None, or none: (.., None?, ..)."""
        found: dict[tuple[int, bool], list[int]] = {}
        for i, (settings, tensor) in enumerate(zip(self.settings, tensors, strict=True)):
            found.setdefault((id(settings), tensor is None), []).append(i)
        for (_, missing), slots in found.items():
            yield self.settings[slots[0]], missing, slots


def is_module(criterion: Criterion | None) -> bool:
    """Whether it can be called with other buffers: a scripted module cannot, and counts as a function."""
    return isinstance(criterion, nn.Module) and not isinstance(criterion, torch.jit.ScriptModule)


def check_teaches(problems: Sequence[BilevelProblem]) -> None:
    """Raise ValueError if the task's loss had a derivative in no piece of a process's batch."""
    if not (problems[0].joint or any(problem.teaches for problem in problems)):
        raise ValueError(
            "criterion returned a loss that has no derivative by the logits, which argmax, detach and torch.no_grad() "
            "cut off; where nothing counts return logits.sum() * 0"
        )


def _check_loss(loss: Any) -> None:
    """Refuse what is no task's loss."""
    wanted = "criterion must return one real number, a tensor without dimensions"
    if not isinstance(loss, Tensor):
        raise TypeError(f"{wanted}, not a {type(loss).__name__}")
    if loss.dim() or not loss.is_floating_point():
        raise TypeError(f"{wanted}, not one of shape {tuple(loss.shape)} in {loss.dtype}")


def _pair(found: Any, module: str, wanted: str) -> Any:
    """What a module has returned, if it is two things."""
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        several = f" of {len(found)}" if isinstance(found, (tuple, list)) else ""
        raise TypeError(f"{module} must return {wanted}, not a {type(found).__name__}{several}")
    return found


def _many(found: Any) -> bool:
    """Whether it is a list of tensors or its like: no tensor, which has rows, and nothing without an order."""
    return isinstance(found, Iterable) and not isinstance(found, (Tensor, *UNORDERED))


def _put(found: Sequence[Sequence[Tensor] | None], lists: Sequence[list], slots: Sequence[int]) -> None:
    """Put what was found for some slots into lists over all slots; None stands for nothing there."""
    for tensors, whole in zip(found, lists, strict=True):
        for i, slot in enumerate(slots):
            whole[slot] = None if tensors is None else tensors[i]


def cut_weights(weights: HeadWeights, images: Sequence[int]) -> list[HeadWeights]:
    """What of ``weights`` belongs to each piece of a batch, of so many images: its rows, or all that images share."""

    def cut(weight: Tensor) -> Sequence[Tensor]:
        shared = len(images) == 1 or len(weight) != sum(images)
        return [weight] * len(images) if shared else weight.split(list(images))

    cuts = [None if w is None else [cut(t) for t in w] for w in weights]
    return [[None if w is None else [t[i] for t in w] for w in cuts] for i in range(len(images))]
