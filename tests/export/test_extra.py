import pytest

from export.extra import MissingExtraError, require_extra


def test_a_package_is_looked_for_without_importing_it(tmp_path, monkeypatch):
    (tmp_path / "slow_and_talkative.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    require_extra("slow_and_talkative")
    with pytest.raises(MissingExtraError, match=r"never_heard_of is not installed.*pip install"):
        require_extra("never_heard_of")
