import sys

import pytest

from export.extra import MissingExtraError, import_extra, require_extra


def test_a_package_is_looked_for_without_importing_it(tmp_path, monkeypatch):
    (tmp_path / "slow_and_talkative.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    require_extra("slow_and_talkative")
    with pytest.raises(MissingExtraError, match=r"never_heard_of is not installed.*pip install"):
        require_extra("never_heard_of")


@pytest.mark.parametrize(("package", "extra"), [("tensorflow", "tensorflow"), ("onnx2tf", "export")])
def test_the_extra_that_a_package_comes_with_is_named(package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package} is not installed; .*pip install -e '\.\[{extra}\]'"):
        import_extra(package)
