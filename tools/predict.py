"""Name the class of images and of series: ``python -m tools.predict MODEL IMAGE...`` (files, folders, globs)."""

import argparse
import sys

from brainq_torch.abstention.policy import UNCERTAIN
from brainq_torch.series.show import answer_command
from export.bundle.predict import add_series_options
from export.run.model import load
from tools.shared.command import add_threads, as_main

NO_ABSTENTION = "it carries no abstention and names a class for any picture; train it or export it again"


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="run folder, .onnx or .tflite file")
    words = "picture, DICOM file, NIfTI volume, DICOMDIR, folder (searched for them), or glob pattern"
    parser.add_argument("images", metavar="IMAGE", nargs="+", help=words)
    add_series_options(parser)
    add_threads(parser)


def _predict(options: argparse.Namespace) -> int:
    model = load(options.model, options.threads)
    if model.abstention is None:
        print(f"{options.model} cannot say {UNCERTAIN}: {NO_ABSTENTION}", file=sys.stderr)
    return answer_command(model.answerer, options)


main = as_main(
    _add_words,
    _predict,
    epilog="Exit code: 0 all images answered; 1 some could not be read, named on stderr; 2 the model is unusable.",
)

if __name__ == "__main__":
    sys.exit(main())
