"""Fine-tuning: the target starts from the source's weights."""

from torch import Tensor, nn

from l2t_fast.errors import L2TFastError
from l2t_fast.models.weights import replace_weights
from l2t_fast.transfer.methods.base import Method, Setup
from l2t_fast.transfer.methods.registry import register_method
from l2t_fast.transfer.source_input import SourceInput

#: Less of the target's weights than this from the source is not fine-tuning but an accident of names.
LEAST_SHARE = 0.5


@register_method
class FineTune(Method):
    """cross-entropy alone, from the source's weights and BatchNorm statistics instead of random ones.

    Every tensor of the target takes the value of the source's tensor of the same name and shape; the others, such as a
    head for another number of classes, start as they would without a source. Of several sources the one that fills most
    of the target is taken.
    """

    name = "fine-tune"
    runs_source = False
    default_pairs = None

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        assert setup.source is not None
        found = [(same_tensors(part.network, setup.target), part.prepare) for part in setup.source.parts]
        best, prepare = max(found, key=lambda of_source: _elements(of_source[0]))
        if isinstance(prepare, SourceInput) and (prepare.changes_values or prepare.size is not None):
            self.notes = (
                "fine-tune: the source's images were of another normalisation or size than the target's are, so its "
                "weights meet values that they were not trained with; data.normalization and data.image_size set both",
            )
        share = _elements(best) / _elements(setup.target.state_dict())
        if share < LEAST_SHARE:
            raise L2TFastError(
                f"fine-tune needs a source of the target's architecture: only {share:.1%} of the weights of "
                f"{setup.options.target.model} have a counterpart of the same name and shape in the source; set "
                "target.model to the source's, or leave fine-tune out"
            )
        replace_weights(setup.target, best)


def same_tensors(source: nn.Module, target: nn.Module) -> dict[str, Tensor]:
    """The source's parameters and buffers whose name and shape occur in the target too."""
    shapes = {name: value.shape for name, value in target.state_dict().items()}
    return {name: value for name, value in source.state_dict().items() if shapes.get(name) == value.shape}


def _elements(tensors: dict[str, Tensor]) -> int:
    """Numbers in `tensors`, without BatchNorm's counters."""
    return sum(value.numel() for value in tensors.values() if value.is_floating_point())
