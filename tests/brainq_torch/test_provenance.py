import subprocess

import pytest

from brainq_torch.provenance import CODE, find_commit, is_dirty


@pytest.fixture
def checkout(tmp_path):
    """A repository with code and a README."""
    for folder in CODE:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "part.py").write_text("x = 1\n")
    (tmp_path / "README.md").write_text("words\n")
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    return tmp_path


def git(root, *words):
    identity = ("-c", "user.name=Test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
    result = subprocess.run(["git", "-C", root, *identity, *words], check=True, capture_output=True, text=True)
    return result.stdout.strip()


def commit(root):
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "a change")
    return git(root, "rev-parse", "HEAD")


def test_a_commit_of_words_alone_is_no_commit_of_the_code(checkout):
    code = find_commit(root=checkout)
    (checkout / "README.md").write_text("other words\n")
    words = commit(checkout)
    assert (find_commit(root=checkout), find_commit(*CODE, root=checkout)) == (words, code)
    (checkout / "tools" / "part.py").write_text("x = 2\n")
    assert find_commit(*CODE, root=checkout) == code
    assert commit(checkout) == find_commit(*CODE, root=checkout) != code


@pytest.mark.parametrize(
    ("path", "dirty"), [("tools/part.py", True), ("export/new.py", True), ("README.md", False), ("notes", False)]
)
def test_code_that_is_not_committed_is_told(checkout, path, dirty):
    assert not is_dirty(checkout)
    (checkout / path).write_text("x = 3\n")
    assert is_dirty(checkout) is dirty


def test_outside_a_checkout_nothing_is_known(tmp_path):
    assert find_commit(root=tmp_path) is None
    assert not is_dirty(tmp_path)
