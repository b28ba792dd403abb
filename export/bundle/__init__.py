"""The folder a clinic gets."""
