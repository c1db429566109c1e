"""TinyImageNet, as tiny-imagenet-200.zip unpacks; its test images have no labels, so the validation images stand in."""

from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from l2t_fast.data.listed import ListedImages, check_known, find_root, listed_data, read_columns, read_lines
from l2t_fast.data.raw import RawData
from l2t_fast.errors import L2TFastError
from l2t_fast.text import printable

NEEDED = ("wnids.txt", "train", "val/images", "val/val_annotations.txt")


def read_tiny_imagenet(folder: Path) -> RawData:
    """wnids.txt names the classes; words.txt, if it is there, says what they are called."""
    root = find_root(folder, NEEDED, inner="tiny-imagenet-200")
    wnids = dict.fromkeys(read_lines(root / "wnids.txt"), "")
    train = ListedImages(root / "train", f"{root} train")
    for wnid in wnids:
        of_class = root / "train" / wnid / "images"
        if ".." in Path(wnid).parts or not of_class.is_dir():
            raise L2TFastError(
                f"{printable(root / 'wnids.txt')} names the class {printable(wnid)!r}, which has no folder "
                f"{printable(of_class)}"
            )
        for path in of_class.iterdir():
            if path.name.lower().endswith(IMG_EXTENSIONS):
                train.add(f"{wnid}/images/{path.name}", wnid, root / "wnids.txt")
    annotations = root / "val" / "val_annotations.txt"
    test = ListedImages(root / "val" / "images", f"{root} val")
    for name, rest in read_columns(annotations, "\t").items():
        wnid = rest.split("\t")[0]
        check_known([wnid], wnids, annotations, root / "wnids.txt")
        test.add(name, wnid, annotations)
    words = root / "words.txt"
    names = read_columns(words, "\t") if words.is_file() else {}
    return listed_data(train, test, {wnid: names[wnid].split(",")[0] for wnid in wnids if wnid in names})
