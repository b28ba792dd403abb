import pytest

from brainq_torch.run import load_run
from export.run.runners import load_runner


@pytest.fixture(scope="module")
def run(tiny_run):
    return load_run(tiny_run)


def test_every_exported_file_does_not_answer_where_its_network_does_not(run, tiny_export, tiny_int8_export):
    """One image is no longer uncertain in one file and answered in the next, as one fitted on other images did."""
    paths = [path for folder in (tiny_export, tiny_int8_export) for path in folder.glob("model_*")]
    assert len(paths) == 5
    for path in paths:
        assert load_runner(path).abstention == run.abstention
    assert load_runner(run.folder).abstention.to_json() == run.abstention.to_json()
