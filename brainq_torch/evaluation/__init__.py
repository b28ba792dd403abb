"""Metrics with intervals, paired comparison, and how far an accuracy can be believed."""
