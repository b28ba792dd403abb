"""Compares every exported file with what it was made from."""
