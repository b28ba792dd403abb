"""Thin commands over ``brainq_torch`` and ``export``: ``python -m tools.evaluate``, ``predict``, ``bench``..."""
