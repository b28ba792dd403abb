"""The browser page as a bundle has it, and the browser that opens it."""

import shutil
from pathlib import Path

import pytest

from brainq_torch.run import load_run
from brainq_torch.series.rule import SERIES_RULE
from export.bundle.build import make_bundle
from export.bundle.web import FILES, INSTALL, PACKAGE, copy_files, find_runtime
from tests.support.chromium import Chromium

PAGE = Path("export/bundle/page").resolve()


@pytest.fixture(scope="session")
def page(tmp_path_factory):
    """The page's folder as a bundle has it, without the runtime of networks."""
    if find_runtime() is None:
        pytest.skip(f"the page's packages are not there: {INSTALL}")
    folder = shutil.copytree(PAGE, tmp_path_factory.mktemp("bundle") / "page")
    for name in FILES.keys() - {PACKAGE}:
        copy_files(find_runtime().parent / name, folder / "runtime", name)
    return str(folder)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    made = Chromium(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


def with_page(run, exported, target):
    if find_runtime() is None:
        pytest.skip(f"the page's packages are not there: {INSTALL}")
    make_bundle(load_run(run), exported, target, page_runtime=find_runtime())
    return target


@pytest.fixture(scope="module")
def int8_bundle(browser, tmp_path_factory, tiny_run, tiny_int8_export):
    exported = shutil.copytree(tiny_int8_export, tmp_path_factory.mktemp("export") / "int8")
    (exported / SERIES_RULE).write_text('{"healthy_up_to": 0.01, "tumour_from": 0.02}')
    return with_page(tiny_run, exported, tmp_path_factory.mktemp("pages") / "clinic")
