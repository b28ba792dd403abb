import os
import warnings

import pytest

from brainq_torch.console import counted, name_first, one_line, run_command
from brainq_torch.run_files import BrainqError


def test_the_first_are_named_and_the_others_counted():
    assert name_first(["a", "b"]) == name_first(["a", "b"], most=2) == "a, b"
    assert name_first(["a", "b", "c", "d"], most=2) == "a, b and 2 more"


def test_one_thing_is_not_said_as_many():
    assert [counted(number, "image") for number in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [counted(number, "slice is", "slices are") for number in (1, 2)] == ["1 slice is", "2 slices are"]


def test_what_libraries_warn_of_is_not_shown():
    def chat():
        for module in ("PIL.TiffImagePlugin", "sklearn.neighbors._base", "ours"):
            warnings.warn_explicit(f"of {module}", UserWarning, "file.py", 1, module)
        return 0

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert run_command(chat) == 0
    assert [str(each.message) for each in shown] == ["of ours"]


def test_an_error_is_one_line(capsys):
    def refuse():
        raise BrainqError("a  b is empty.\n\n  Allowed layouts:\n  DIR")

    assert run_command(refuse) == 2
    assert capsys.readouterr().err == "error: a  b is empty. Allowed layouts: DIR\n"


def test_a_name_that_the_locale_cannot_write_has_a_remedy():
    with pytest.raises(UnicodeEncodeError) as caught:
        "l\udcc3ufe".encode()
    assert one_line(caught.value).endswith("surrogates not allowed); set PYTHONUTF8=1")


@pytest.mark.parametrize(("system", "end"), [("posix", "read and write"), ("nt", "where another program has it open")])
def test_a_table_that_is_open_in_a_spreadsheet_is_to_be_closed(monkeypatch, capsys, system, end):
    monkeypatch.setattr(os, "name", system)

    def write():
        raise PermissionError(13, "Permission denied", "a.csv")

    assert run_command(write) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: a.csv: Permission denied; name a place")
    assert said.endswith(f"{end}\n")
