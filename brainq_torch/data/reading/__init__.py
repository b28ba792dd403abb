"""Reads image files to grey uint8: one file per format, content decides, not the name."""
