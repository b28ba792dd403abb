import pytest

from tools.study.code_version import ROOT, _read, hash_code

FILES = {
    "tools/__init__.py": "",
    "tools/study_like.py": '"""Doc."""\nfrom tools.part import value\n\n\ndef run() -> int:\n    return value\n',
    "tools/part.py": "value = 1\n",
    "tools/later.py": "number = 1\n",
    "tools/other.py": "x = 1\n",
    "export/__init__.py": "",
    "export/__main__.py": "def run():\n    from tools import later\n    return later.number\n",
}


@pytest.fixture
def root(tmp_path):
    for name, text in FILES.items():
        write(tmp_path, name, text)
    yield tmp_path
    _read.cache_clear()


def write(root, name, text):
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text(text)
    _read.cache_clear()


def test_words_and_layout_do_not_count(root):
    before = hash_code("tools.study_like", root)
    text = (
        FILES["tools/study_like.py"].replace('"""Doc."""', '"""Another doc."""\n# why').replace("value\n", "(value)\n")
    )
    write(root, "tools/study_like.py", text)
    write(root, "tools/other.py", "x = 2\n")  # nothing imports it
    assert hash_code("tools.study_like", root) == before


@pytest.mark.parametrize(
    ("module", "changed", "text"),
    [
        (
            "tools.study_like",
            "tools/study_like.py",
            FILES["tools/study_like.py"].replace("return value", "return -value"),
        ),
        ("tools.study_like", "tools/part.py", "value = 2\n"),
        ("export", "tools/later.py", "number = 2\n"),  # imported inside a function
        ("export", "export/__init__.py", "y = 1\n"),
    ],
)
def test_what_it_does_and_what_it_imports_counts(root, module, changed, text):
    before = hash_code(module, root)
    write(root, changed, text)
    assert hash_code(module, root) != before


def test_a_module_that_is_not_ours_is_refused(root):
    with pytest.raises(ModuleNotFoundError, match=r"tools\.absent is no command of ours"):
        hash_code("tools.absent", root)


def test_the_commands_of_a_study_know_what_they_load():
    modules = ("brainq_torch.fit", "export", "tools.predictions", "tools.bench")
    assert len({hash_code(module, ROOT) for module in modules}) == len(modules)
