"""Tables: splits, standardisation, Spambase from a file and from OpenML, damaged ones."""

import hashlib
import io
import json
import urllib.error

import keras
import numpy as np
import pytest
import sklearn.datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

import reference_models
from tfrobust import data, training
from tfrobust.data import tabular
from tfrobust.data.tabular import CorruptDataError, DataNotFoundError, Table
from tfrobust.objectives import CrossEntropy

SPLITS = ("train", "test", "validation")


@pytest.fixture(scope="module")
def rows():
    """A table of Spambase's size: 57 features of two decimals or none, and the label."""
    rng = np.random.default_rng(0)
    features = np.round(rng.exponential(size=(4601, 57)), 2)
    features[:, -1] = np.ceil(100 * features[:, -1])
    return np.column_stack([features, rng.integers(0, 2, 4601)])


@pytest.fixture
def folder(rows, tmp_path):
    (tmp_path / "spambase.data").write_text(text_of(rows))
    return tmp_path


def text_of(rows):
    return "".join(",".join(f"{value:g}" for value in row) + "\n" for row in rows)


@pytest.fixture
def openml(monkeypatch, tmp_path):
    """Stands for OpenML's server: gives it these rows, in OpenML's own answers."""
    from sklearn.datasets import _openml

    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "cache"))

    def serve(rows, *, damaged=False):
        names = [f"feature_{i}" for i in range(rows.shape[1] - 1)]
        kinds = [f"@ATTRIBUTE {name} REAL" for name in names] + ["@ATTRIBUTE class {0,1}"]
        arff = "\n".join(["@RELATION spambase", *kinds, "@DATA", text_of(rows)]).encode()
        checksum = hashlib.md5(b"another" if damaged else arff).hexdigest()
        features = [
            {
                "name": name,
                "index": str(i),
                "data_type": "nominal" if name == "class" else "numeric",
                "is_target": "true" if name == "class" else "false",
                "is_ignore": "false",
                "is_row_identifier": "false",
                "number_of_missing_values": "0",
            }
            for i, name in enumerate([*names, "class"])
        ]
        features[-1]["nominal_value"] = ["0", "1"]
        description = {
            "id": "44",
            "name": "spambase",
            "version": "1",
            "format": "ARFF",
            "status": "active",
            "description": "",
            "md5_checksum": checksum,
            "url": "https://www.openml.org/data/v1/download/44/spambase.arff",
        }
        listed = {"did": 44, "name": "spambase", "version": 1, "status": "active"}
        quality = [{"name": "NumberOfInstances", "value": str(len(rows))}]
        answers = {
            "data/list/data_name/spambase/limit/2/data_version/1": {"data": {"dataset": [listed]}},
            "json/data/44": {"data_set_description": description},
            "data/features/44": {"data_features": {"feature": features}},
            "data/qualities/44": {"data_qualities": {"quality": quality}},
        }
        contents = {end: json.dumps(answer).encode() for end, answer in answers.items()}
        contents["spambase.arff"] = arff

        def urlopen(request):
            (content,) = (body for end, body in contents.items() if request.full_url.endswith(end))
            response = io.BytesIO(content)
            response.info = dict
            return response

        monkeypatch.setattr(_openml, "urlopen", urlopen)

    return serve


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """What no test has stubbed fails at once; retries do not wait."""
    from sklearn.datasets import _openml

    def fail(request):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(_openml, "urlopen", fail)
    monkeypatch.setattr(_openml.time, "sleep", lambda seconds: None)


@pytest.mark.parametrize("by", ["all", "training"])
@pytest.mark.parametrize(
    ("name", "sizes", "width"), [("iris", [105, 30, 15], 4), ("wine", [125, 36, 17], 13)]
)
def test_bundled_tables_are_whole_and_standardised(name, sizes, width, by):
    """Against scikit-learn's own scaler on the rows of the documented order."""
    bunch = getattr(sklearn.datasets, f"load_{name}")()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    parts = np.split(order, np.cumsum(sizes)[:-1])
    scaler = StandardScaler().fit(bunch.data if by == "all" else bunch.data[parts[0]])
    splits = [data.load(name, split, standardized_by=by) for split in SPLITS]
    assert [len(split) for split in splits] == sizes
    for split, part in zip(splits, parts, strict=True):
        assert split.images.shape == (len(part), width)
        assert (split.images.dtype, split.labels.dtype) == (np.float32, np.int32)
        np.testing.assert_allclose(split.images, scaler.transform(bunch.data[part]), atol=1e-5)
        np.testing.assert_array_equal(split.labels, bunch.target[part])
        assert split.classes == 3
        words = {"all": "all rows", "training": "the training split"}[by]
        assert split.provenance.processing.startswith(f"standardised by {words}, ")
    again = data.load(name, "test", standardized_by=by)
    assert again.provenance == splits[1].provenance
    default = data.load(name, "test").provenance
    assert (default == again.provenance) == (by == "all")
    digest = hashlib.sha256(again.images.tobytes() + again.labels.tobytes()).hexdigest()
    assert again.provenance.sha256 == digest


@pytest.mark.parametrize("name", ["iris", "wine"])
def test_the_range_does_not_bind(name):
    splits = [data.load(name, split) for split in SPLITS]
    (value_range,) = {split.value_range for split in splits}
    largest = max(np.abs(split.images).max() for split in splits)
    assert value_range == (-2 * largest, 2 * largest)


@settings(max_examples=40)
@given(
    count=st.integers(10, 300),
    width=st.integers(1, 6),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**32 - 1),
    by=st.sampled_from(["all", "training"]),
)
def test_every_table_is_cut_into_its_splits(count, width, scale, seed, by):
    rng = np.random.default_rng(seed)
    features = rng.normal(rng.normal(), scale, (count, width))
    table = Table(features, np.arange(count, dtype=np.int32), 2, "", "")
    cut = [tabular.standardised(table, split, by) for split in SPLITS]
    sizes = np.array([len(part[0]) for part in cut])
    assert (np.abs(sizes - count * np.array([0.7, 0.2, 0.1])) <= 1).all()
    ids = np.concatenate([part[1] for part in cut])
    np.testing.assert_array_equal(np.sort(ids), np.arange(count))
    every = np.concatenate([part[0] for part in cut]).astype(np.float64)
    reference = every if by == "all" else cut[0][0].astype(np.float64)
    np.testing.assert_allclose(reference.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(reference.std(0), 1, atol=1e-5)
    # back in the source's units, all rows are there; columns share one affine map
    for column, own in zip(every.T, features[ids].T, strict=True):
        slope, intercept = np.polyfit(column, own, 1)
        np.testing.assert_allclose(slope * column + intercept, own, atol=1e-5 * scale)
    assert {part[2] for part in cut} == {(-2 * np.abs(every).max(), 2 * np.abs(every).max())}


def test_a_constant_feature_is_not_standardised():
    features = np.column_stack([np.arange(20.0), np.full(20, 0.1)])
    table = Table(features, np.zeros(20, np.int32), 2, "a table", "")
    with pytest.raises(CorruptDataError, match="a table: feature 1 has one value only"):
        tabular.standardised(table, "test")
    with pytest.raises(ValueError, match="standardized_by must be"):
        data.load("iris", standardized_by="test")
    with pytest.raises(ValueError, match="digits takes no standardized_by"):
        data.load("digits", standardized_by="all")


def test_spambase_from_a_file_and_from_openml_are_the_same(rows, folder, openml, tmp_path):
    order = np.random.default_rng(0).permutation(4601)
    openml(rows)
    for split, part in zip(SPLITS, np.split(order, [3221, 4141]), strict=True):
        own = data.load("spambase", split, data_dir=folder)
        np.testing.assert_array_equal(own.labels, rows[part, -1])
        scaler = StandardScaler().fit(rows[:, :-1])
        np.testing.assert_allclose(own.images, scaler.transform(rows[part, :-1]), atol=1e-5)
        assert (own.classes, own.images.shape) == (2, (len(part), 57))
        fetched = data.load("spambase", split, data_dir=tmp_path / "none", download=True)
        assert fetched.provenance.sha256 == own.provenance.sha256
        assert fetched.value_range == own.value_range
        assert fetched.provenance.source == "OpenML spambase"
    digest = hashlib.sha256((folder / "spambase.data").read_bytes()).hexdigest()
    assert own.provenance.version == f"sha256 of the file {digest}"


def test_the_file_comes_before_openml(folder, monkeypatch):
    """The network, which fails here, is not asked."""
    monkeypatch.setenv("TFROBUST_DATA_DIR", str(folder))
    named = data.load("spambase", "test", download=True)
    assert named.provenance == data.load("spambase", "test", data_dir=folder).provenance


def test_the_real_spambase(data_dir, openml, tmp_path):
    splits = [data.load("spambase", split, data_dir=data_dir) for split in SPLITS]
    assert [len(split) for split in splits] == [3221, 920, 460]
    labels = np.concatenate([split.labels for split in splits])
    np.testing.assert_array_equal(np.bincount(labels), [2788, 1813])
    openml(np.loadtxt(f"{data_dir}/spambase.data", delimiter=","))
    fetched = data.load("spambase", "train", data_dir=tmp_path, download=True)
    assert fetched.provenance.sha256 == splits[0].provenance.sha256


def test_no_spambase_says_the_two_ways(tmp_path, monkeypatch):
    monkeypatch.delenv("TFROBUST_DATA_DIR", raising=False)
    for where, said in [(tmp_path, f"no file {tmp_path}"), (None, "no folder of data sets")]:
        with pytest.raises(DataNotFoundError) as error:
            data.load("spambase", "train", data_dir=where)
        message = str(error.value)
        assert said in message
        assert 'tfrobust.data.load("spambase", download=True)' in message
        assert "put spambase.data from https://archive.ics.uci.edu" in message
        assert "TFROBUST_DATA_DIR" in message


@pytest.mark.filterwarnings("ignore:A network error occurred")
def test_openml_out_of_reach(tmp_path, monkeypatch):
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path))
    with pytest.raises(DataNotFoundError, match=r"Name or service not known.*put spambase\.data"):
        data.load("spambase", data_dir=tmp_path, download=True)


@pytest.mark.filterwarnings("ignore:Invalid cache")
def test_openml_gives_something_else(rows, openml, tmp_path):
    openml(rows, damaged=True)
    with pytest.raises(DataNotFoundError, match=r"md5 checksum .* does not match"):
        data.load("spambase", data_dir=tmp_path, download=True)


def test_openml_gives_too_few_rows(rows, openml, tmp_path):
    openml(rows[:100])
    message = r"from OpenML: \(rows, features\) are \(100, 57\).*Clear scikit-learn's cache"
    with pytest.raises(CorruptDataError, match=message):
        data.load("spambase", data_dir=tmp_path, download=True)


def shortened(text, part):
    return text[: int(len(text) * part)]


def in_row(text, number, change):
    lines = text.splitlines()
    lines[number] = change(lines[number])
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: "", r"are \(0, 0\)"),
        (lambda text: shortened(text, 0.5), r"number of columns|are \(2\d\d\d, 57\)|convert"),
        (lambda text: text[: text.rindex(",")], "number of columns changed"),
        (lambda text: text[: text[:-1].rindex("\n")], r"are \(4600, 57\)"),
        (lambda text: text + text.splitlines()[0], r"are \(4602, 57\)"),
        (lambda text: in_row(text, 7, lambda row: row + ",1"), "columns changed from 58 to 59"),
        (lambda text: in_row(text, 7, lambda row: row[:-1]), "could not convert string ''"),
        (lambda text: in_row(text, 7, lambda row: row[:-1] + "2"), "row 7 .*label other than"),
        (lambda text: in_row(text, 7, lambda row: "nan" + row[row.index(",") :]), "row 7 .*finite"),
        (lambda text: "word_freq_make," + text, "could not convert string 'word_freq_make'"),
        (lambda text: text.replace(",", ";"), "could not convert"),
        (lambda text: text.replace("\n", ",0\n"), r"are \(4601, 58\)"),
        (lambda text: "<!doctype html>\n<title>404</title>\n", "could not convert"),
    ],
)
def test_a_damaged_file(folder, damage, said):
    path = folder / "spambase.data"
    path.write_text(damage(path.read_text()))
    with pytest.raises(CorruptDataError, match=said) as error:
        data.load("spambase", data_dir=folder, download=True)
    assert str(path) in str(error.value)
    assert "Put spambase.data from https://archive.ics.uci.edu" in str(error.value)


def test_a_file_that_is_no_text(folder):
    (folder / "spambase.data").write_bytes(b"\x1f\x8b\x08\x00\xff" * 100)
    with pytest.raises(CorruptDataError, match=r"spambase\.data is damaged"):
        data.load("spambase", data_dir=folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "epochs", "least"), [("iris", 200, 0.9), ("wine", 200, 0.9), ("spambase", 30, 0.88)]
)
def test_the_papers_mlps_learn_them(name, epochs, least, request):
    folder = request.getfixturevalue("data_dir") if name == "spambase" else None
    train, test = (data.load(name, split, data_dir=folder) for split in ("train", "test"))
    model = reference_models.build(f"{name}_mlp")
    training.fit(
        model,
        train.arrays,
        CrossEntropy(),
        optimizer=keras.optimizers.Adam(0.01),
        epochs=epochs,
        batch_size=32,
        progress=False,
    )
    accuracy = training.evaluate(model, *test.arrays)["accuracy"]
    print(f"{name}: accuracy on the {len(test)} test rows {accuracy:.3f}")
    assert accuracy >= least
