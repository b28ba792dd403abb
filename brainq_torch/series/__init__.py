"""Answers for whole series: files to slices, slices to answers, and one answer from those of a series' slices."""
