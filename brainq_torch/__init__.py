"""Train a brain-MRI classifier, compress it, and prove what compressing it cost. Not a medical device."""

from importlib.metadata import PackageNotFoundError, version

from brainq_torch.allocator import restart_to_keep_memory
from brainq_torch.openmp import limit_spinning

limit_spinning()
restart_to_keep_memory()

try:
    __version__ = version("brainq_torch")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+uninstalled"
