"""When a model does not answer: a fitted policy and an outlier score."""
