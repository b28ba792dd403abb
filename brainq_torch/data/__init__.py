"""Pixels in: image files, phantoms, splits, augmentation."""
