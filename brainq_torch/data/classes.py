"""The label set of a data set, and what its folders mean: the paper's four classes, or any others."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from brainq_torch.run_files import BrainqError

CLASSES: tuple[str, ...] = ("glioma", "meningioma", "notumor", "pituitary")
"""The paper's classes, which phantoms have, in label order: a label is an index, logits have one entry for each."""

ALONE = "class {} has a single training image; two are needed to split it: add one, or leave the class out"

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


def _find(key: str, meanings: Mapping[str, frozenset[str]]) -> str | None:
    return next((name for name, aliases in meanings.items() if key in aliases), None)


def class_of_folder(folder: str) -> str | None:
    """Return the class that a folder name means, or None when it means none of the four.

    Case, spaces, dashes, underscores and digits are ignored: ``glioma_tumor``, ``No Tumor``, ``healthy``.
    """
    return _find(_key(folder), _ALIASES)


def class_of_name(name: str) -> str:
    """Return which of the four a chosen name means, else itself. Its digits count: ``glioma 2`` may be a grade."""
    return _find("".join(letter for letter in name.lower() if letter.isalnum()), _ALIASES) or name


def split_of_folder(folder: str) -> str | None:
    """Return ``Training``, ``val`` or ``Testing`` for a folder name that means a split, else None."""
    return _find(_key(folder), _SPLITS)


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

    def ask(self, one: str, other: str, meaning: str) -> str:
        """Return a question where two folders would be one class and a number tells them apart; empty where not."""
        said = {_plain(folder) for folder, _ in self.folders}
        if not self.auto or _plain(other) in said or _key(one) != _key(other) or _plain(one) == _plain(other):
            return ""
        together, apart = f"{one}: {meaning}, {other}: {meaning}", f"{one}: {one}, {other}: {other}"
        return (
            f"{one} and {other} differ by a number alone. If both are {meaning}, give data.class_map "
            f"'{{{together}}}'; if they are two classes, '{{{apart}}}'."
        )

    def describe(self) -> str:
        """Return what the name of a class folder may be."""
        return f"{', '.join(self.names)} or a name that means one of them" if self.names else "the name of a class"


FEWEST, MOST = 2, 100
"""Classes of a network."""


class ClassError(BrainqError):
    """A label set that cannot be had."""


def read_labels(classes: Literal["auto"] | Sequence[str | bool | int], class_map: Mapping[str, str]) -> Labels:
    """Return the label set that ``data.classes`` and ``data.class_map`` ask for; names that mean the four become these.

    Raises:
        ClassError: a name is listed twice, cannot be a name, or is mapped to and not listed.
    """
    words = [] if classes == "auto" else [_word(name) for name in classes]
    listed = [class_of_name(name) for name in words]
    pairs = [(_word(folder), _word(name)) for folder, name in class_map.items()]
    folders = tuple((folder, class_of_name(name)) for folder, name in pairs)
    for name in (*listed, *(name for _, name in folders)):
        check_name(name)
    twice = [name for place, name in enumerate(listed) if _plain(name) in {_plain(each) for each in listed[:place]}]
    if twice:
        raise ClassError(f"data.classes names {twice[0]} twice, perhaps by another name of it; leave one")
    if classes != "auto":
        check_count(listed, "data.classes")
    meant: dict[str, str] = {}
    for folder, name in folders:
        if meant.setdefault(_plain(folder), name) != name:
            raise ClassError(f"data.class_map says {folder} is {meant[_plain(folder)]} and {name}; leave one")
    nowhere = [f"{folder}: {name}" for folder, name in folders if listed and name not in listed]
    if nowhere:
        raise ClassError(f"data.class_map has {nowhere[0]}, which is not in data.classes; allowed are {sorted(listed)}")
    return Labels(tuple(sorted(listed)), folders)


def _word(value: str | bool | int) -> str:
    """Return what was written where YAML made something else of it: ``yes`` and ``no`` are true and false to it."""
    return str(value) if not isinstance(value, bool) else "yes" if value else "no"


def check_name(name: str) -> None:
    """Raise ClassError for what cannot be the name of a class: it stands in tables, file names and pages."""
    if not name.strip() or not name.isprintable() or len(name) > 80 or set(name) & set("/\\"):
        raise ClassError(f"{name!r} is no name of a class; give 1 to 80 printable letters without / and \\")


def check_count(classes: Collection[str], where: str) -> None:
    """Raise ClassError for fewer than two classes, or more than a hundred."""
    if not FEWEST <= len(classes) <= MOST:
        names = f" ({', '.join(sorted(classes)[:3])})" if classes else ""
        raise ClassError(
            f"{where} has {len(classes)} classes{names}; {FEWEST} to {MOST} are needed: add some, or say data.class_map"
        )


def require_four(classes: Sequence[str], what: str, instead: str = "leave it out") -> None:
    """Raise ClassError where what needs the paper's four classes meets others; ``instead`` says what to do."""
    if sorted(classes) != list(CLASSES):
        raise ClassError(
            f"{what} needs the classes {', '.join(CLASSES)}; here they are {', '.join(classes)}; {instead}"
        )


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter not in " _-")
