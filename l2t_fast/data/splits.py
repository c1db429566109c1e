"""Which image goes where: held-out shares and N a class, class by class, from a seed.

``classes`` maps the numbers of the chosen classes, as ``labels`` has them, to their names. Each class is shuffled by a
generator of its own, so that the choice in one class does not depend on the others: the same images are held out
whatever ``classes`` and ``per_class`` say, and the N images of a small N are among those of a larger N.
"""

from collections.abc import Mapping

import numpy as np

from l2t_fast.errors import L2TFastError

# The test set is the same for every seed of a run, so that runs can be compared.
TEST_SEED = 0


def hold_out_test(
    labels: np.ndarray, share: float, classes: Mapping[int, str], where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (rest, test): ``share`` of each class, at least one image, is the test set."""
    rest, test = [], []
    for number, name in classes.items():
        of_class = np.flatnonzero(labels == number)
        _check_enough(of_class, 3, name, where, "one to train on, one for validation and one for the test")
        shuffled = np.random.default_rng((TEST_SEED, number)).permutation(of_class)
        cut = _share_of(share, len(shuffled), left_over=2)
        test.append(shuffled[:cut])
        rest.append(shuffled[cut:])
    return np.concatenate(rest), np.concatenate(test)


def hold_out_validation(
    labels: np.ndarray, candidates: np.ndarray, share: float, classes: Mapping[int, str], where: str, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (train, validation) among ``candidates``: ``share`` of each class, at least one image, is held out."""
    train, validation = [], []
    for number, name in classes.items():
        of_class = candidates[labels[candidates] == number]
        _check_enough(of_class, 2, name, where, "one to train on and one for validation")
        # Sorted first: the draw must depend on which images there are and not on their order.
        shuffled = np.random.default_rng((seed, number)).permutation(np.sort(of_class))
        cut = _share_of(share, len(shuffled), left_over=1)
        validation.append(shuffled[:cut])
        train.append(shuffled[cut:])
    return np.concatenate(train), np.concatenate(validation)


def limit_per_class(
    labels: np.ndarray, candidates: np.ndarray, per_class: int, classes: Mapping[int, str], where: str, seed: int
) -> np.ndarray:
    """``per_class`` of the ``candidates`` of each class."""
    chosen = []
    for number, name in classes.items():
        of_class = np.sort(candidates[labels[candidates] == number])
        if len(of_class) < per_class:
            raise L2TFastError(
                f"class {name!r} of {where} has {_images(len(of_class))} to train on, "
                f"fewer than per_class = {per_class}"
            )
        chosen.append(np.random.default_rng((seed, number, 1)).permutation(of_class)[:per_class])
    return np.concatenate(chosen)


def check_no_class_is_empty(labels: np.ndarray, classes: Mapping[int, str], where: str) -> None:
    """``L2TFastError`` that names the first class without an image."""
    for number, name in classes.items():
        _check_enough(np.flatnonzero(labels == number), 1, name, where, "one")


def _check_enough(of_class: np.ndarray, least: int, name: str, where: str, purpose: str) -> None:
    if len(of_class) < least:
        raise L2TFastError(f"class {name!r} of {where} has {_images(len(of_class))}, it needs at least {purpose}")


def _share_of(share: float, count: int, left_over: int) -> int:
    return min(max(1, round(share * count)), count - left_over)


def _images(count: int) -> str:
    return {0: "no image", 1: "1 image"}.get(count, f"{count} images")
