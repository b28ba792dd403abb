"""The label set of a data set, and what its folders mean: the paper's four classes, or any others."""

from dataclasses import dataclass

CLASSES: tuple[str, ...] = ("glioma", "meningioma", "notumor", "pituitary")
"""The paper's classes, which phantoms have, in label order: a label is an index, logits have one entry for each."""

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


@dataclass(frozen=True)
class Labels:
    """What the folders of a data set mean.

    Attributes:
        names: the classes that may be there, in label order; none: those that the folders name, in alphabetical order.
        folders: (folder, class) pairs, which beat what a folder's name means by itself.
    """

    names: tuple[str, ...] = CLASSES
    folders: tuple[tuple[str, str], ...] = ()

    @property
    def auto(self) -> bool:
        """Whether a folder whose name means nothing else is a class of that name."""
        return not self.names

    def of_folder(self, folder: str) -> str | None:
        """Return the class that a folder's name means, or None; case, spaces, dashes and underscores are ignored."""
        named = {_plain(name): name for name in self.names} | {_plain(name): meaning for name, meaning in self.folders}
        known = class_of_folder(folder)
        return named.get(_plain(folder)) or (known if self.auto or known in self.names else None)

    def describe(self) -> str:
        """Return what the name of a class folder may be."""
        return f"{', '.join(self.names)} or a name that means one of them" if self.names else "the name of a class"


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter not in " _-")
