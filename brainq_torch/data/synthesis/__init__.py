"""Drawn images: phantoms, lesions, and training images in which class and source do not go together."""
