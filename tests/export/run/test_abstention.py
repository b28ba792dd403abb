import dataclasses
import json

import pytest

from brainq_torch.run import load_run
from export.run.metadata import MetadataError, read_metadata, write_metadata
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


def test_a_damaged_entry_is_named(run, tiny_export, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes((tiny_export / "model_fp16.tflite").read_bytes())
    metadata = read_metadata(path)
    data = metadata.to_json()
    del data["abstention"]["limit"]
    with pytest.raises(MetadataError, match="abstention is not as this version writes it"):
        type(metadata).from_json(json.loads(json.dumps(data)), "file")
    write_metadata(path, dataclasses.replace(metadata, abstention=None))
    assert read_metadata(path).abstention is None
    assert "abstention" not in read_metadata(path).to_json()
