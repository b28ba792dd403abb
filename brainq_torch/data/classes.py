"""The one label table: the four classes, and the folder names that mean them."""

CLASSES: tuple[str, ...] = ("glioma", "meningioma", "notumor", "pituitary")
"""Class names in label order: a label is an index into this tuple, a logit vector has one entry per name."""

GLIOMA, MENINGIOMA, NOTUMOR, PITUITARY = range(len(CLASSES))

_ALIASES: dict[str, frozenset[str]] = {
    "glioma": frozenset({"glioma", "gliomas", "gliomatumor", "gl"}),
    "meningioma": frozenset({"meningioma", "meningiomas", "meningiomatumor", "me"}),
    "notumor": frozenset({"notumor", "notumour", "no", "none", "normal", "healthy", "notumors", "negative"}),
    "pituitary": frozenset({"pituitary", "pituitarytumor", "pituitarytumour", "pituitaryadenoma", "pi"}),
}

_SPLITS: dict[str, frozenset[str]] = {
    "Training": frozenset({"training", "train"}),
    "val": frozenset({"val", "valid", "validation", "dev"}),
    "Testing": frozenset({"testing", "test"}),
}


def _key(folder: str) -> str:
    """Keep letters only, lower case: ``No_Tumor`` and ``no tumor`` are one name."""
    return "".join(letter for letter in folder.lower() if letter.isalpha())


def class_of_folder(folder: str) -> str | None:
    """Return the class that a folder name means, or None when it means none of the four.

    Case, spaces, dashes, underscores and digits are ignored: ``glioma_tumor``, ``No Tumor``, ``healthy``.
    """
    key = _key(folder)
    return next((name for name, aliases in _ALIASES.items() if key in aliases), None)


def split_of_folder(folder: str) -> str | None:
    """Return ``Training``, ``val`` or ``Testing`` for a folder name that means a split, else None."""
    key = _key(folder)
    return next((name for name, aliases in _SPLITS.items() if key in aliases), None)
