"""`bench.py imported`: the checkpoint that it writes, and its record."""

import io
import pickletools
import tarfile
import zipfile

import pytest

from benchmarks import imported
from benchmarks.nemo_file import Sizes, write_nemo
from conformer.artefacts.formats import FORMATS
from conformer.checkpoints.convert import read_checkpoint
from conformer.checkpoints.nemo import WEIGHTS

SIZES = Sizes(dim=16, layers=1, heads=2, expansion=2, channels=4, units=20, contexts=((4, 1), (4, 0)))


def test_the_checkpoint_is_one_that_is_read(tmp_path):
    path = tmp_path / "model.nemo"
    write_nemo(path, SIZES)
    found = read_checkpoint(path)
    assert (found.config.model.encoder_dim, found.config.model.vocab_size) == (16, 21)
    assert found.config.not_streaming is None and found.config.train.chunk_sizes == (2, 1)
    norm = found.parameters["encoder.blocks.0.norm.scale"]
    assert abs(norm.mean() - 1) < 0.2 and norm.std() > 0
    with tarfile.open(path) as archive, zipfile.ZipFile(archive.extractfile(WEIGHTS) or "") as weights:
        pickletools.dis(weights.read("weights/data.pkl"), out=io.StringIO())  # well formed
    other = tmp_path / "other.nemo"
    write_nemo(other, SIZES, seed=1)
    assert (read_checkpoint(other).parameters["head.kernel"] != found.parameters["head.kernel"]).any()


def test_a_command_that_fails_is_named():
    with pytest.raises(imported.CommandError, match=r"convert\.py ended with status 1"):
        imported.measured("convert.py", "absent.nemo", "--out=absent")


@pytest.mark.slow  # five commands, one after the other
def test_the_record_holds_import_exports_and_steps():
    for format, _ in imported.EXPORTS:
        for package in FORMATS[format].interpreters + FORMATS[format].converters:
            pytest.importorskip(package)
    result = imported.run(2, SIZES)
    assert result["import"]["seconds"] > 0 and result["num_parameters"] < 20_000
    names = {f"{format}_{numerics}" for format, numerics in imported.EXPORTS}
    assert result["exports"].keys() == result["rows"].keys() == names
    assert result["chunk_seconds"] == pytest.approx(0.16)
    for row in result["rows"].values():
        assert len(row["seconds"]) == 2 * imported.ROUNDS and row["difference"] < 0.5
    assert result["rows"][imported.REFERENCE]["speed"] == 1.0
    assert all(name in imported.table(result) for name in names)
