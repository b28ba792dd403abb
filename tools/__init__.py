"""Thin commands over ``brainq_torch`` and ``export``: ``python -m tools.evaluate``, ``predict``, ``bench``..."""

import brainq_torch  # noqa: F401 - first: it says how PyTorch's threads wait
