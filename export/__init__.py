"""From a run folder to files that run without PyTorch, each checked against the one it was made from."""

import brainq_torch  # noqa: F401 - first: it says how PyTorch's threads wait
