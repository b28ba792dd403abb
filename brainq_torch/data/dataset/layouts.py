"""How a data folder may look."""

import stat
from pathlib import Path

from brainq_torch.data.classes import Labels
from brainq_torch.data.dataset.sample import DataFolderError

_LAYOUTS = """Allowed layouts, where {{class}} is {}:
  DIR/Training/{{class}}/*.jpg and DIR/Testing/{{class}}/*.jpg;
  DIR/train/{{class}}/*.jpg, DIR/val/{{class}}/*.jpg and DIR/test/{{class}}/*.jpg;
  DIR/{{class}}/*.jpg;
  DIR/labels.csv with the columns path and label, and where they are known group and split;
  DIR/*.mat or DIR/*/*.mat of the figshare brain tumour data set, whose files name their class.
What folders of other names mean is said with --data.class_map, to tools.evaluate with --label-map"""


def describe_layouts(labels: Labels) -> str:
    """Return how a data folder may look."""
    return _LAYOUTS.format(labels.describe())


def require_folder(root: Path, labels: Labels) -> None:
    """Raise DataFolderError where there is no such folder."""
    layouts = describe_layouts(labels)
    try:
        mode = root.stat().st_mode
    except FileNotFoundError:
        raise DataFolderError(f"{root} does not exist; check the path.\n{layouts}") from None
    except OSError as error:
        raise DataFolderError(f"{root} cannot be opened ({error.strerror}).\n{layouts}") from error
    if not stat.S_ISDIR(mode):
        raise DataFolderError(f"{root} is a file, not a folder; name the folder of the data set.\n{layouts}")
