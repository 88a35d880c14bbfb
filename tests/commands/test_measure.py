"""`tfrobust measure` end to end: its page, its numbers, resuming, and every error."""

import contextlib
import hashlib
import html
import json
import re
import shutil

import h5py
import keras
import numpy as np
import pandas as pd
import pytest
from helpers.commands import tfrobust
from helpers.pictures import encoded, jpeg, smooth
from helpers.small_application import small_mobilenet
from keras import layers
from keras.src.backend import config
from keras.src.utils import file_utils

import reference_models
from tfrobust import alignment, attacks, input_gradient
from tfrobust.commands import main
from tfrobust.commands.measure import Resolved, Settings, steps
from tfrobust.commands.measure.figures import class_names
from tfrobust.commands.measure.results import prepare
from tfrobust.commands.subject import Subject
from tfrobust.data.images import read_images

pytestmark = pytest.mark.filterwarnings("ignore::tfrobust.errors.InexactDecompositionWarning")
IMAGES = 9


def shaken(model, seed):
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if len(variable.shape) == 1:
            variable.assign(variable + rng.uniform(0, 0.3, variable.shape))
    return model


def small_classifier(size=(20, 24), channels=3, activation="gelu", head="softmax", seed=0):
    keras.utils.set_random_seed(seed)
    return shaken(
        keras.Sequential(
            [
                keras.Input((*size, channels)),
                layers.Conv2D(6, 3, strides=2, activation=activation),
                layers.GlobalAveragePooling2D(),
                layers.Dense(4, activation=head),
            ]
        ),
        seed,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Nine JPEGs in two folders, one truncated file among them, and a text file."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("images")
    for place in ("a", "b"):
        (folder / place).mkdir()
    for k in range(IMAGES):
        (folder / "ab"[k % 2] / f"{k}.jpg").write_bytes(jpeg(rng, 40 + k, 50))
    (folder / "a" / "broken.jpg").write_bytes(jpeg(rng)[:300])
    (folder / "readme.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return reference_models.save(
        small_classifier(), tmp_path_factory.mktemp("model") / "small.keras"
    )


def measure(model, images, out, *more):
    given = ("--model", model, "--images", images, "--out", out, *more)
    main(["measure", *map(str, given)])


@contextlib.contextmanager
def settled(images):
    """A small MobileNet, random, with batch statistics from images: else float32 underflows."""
    build = reference_models.build

    def build_settled(*arguments, **settings):
        model = build(*arguments, **settings)
        x, _ = read_images(images, size=(32, 32), limit=3)
        for layer in model.layers:
            if isinstance(layer, layers.BatchNormalization):
                layer.momentum = 0.0
        model(reference_models.preprocessing("mobilenet")(x), training=True)
        return model

    with small_mobilenet(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_models, "build", build_settled)
        yield


def measure_application(folder, out):
    more = ("--weights", "none", "--size", 32, "--limit", 6, "--pictured", 3)
    with settled(folder):
        measure("keras_applications:MobileNet", folder, out, *more)


@pytest.fixture(scope="module")
def application(folder, tmp_path_factory):
    """The run folder of a Keras application with random weights."""
    out = tmp_path_factory.mktemp("application")
    measure_application(folder, out)
    return out


OURS = ("--preprocessing", "torch", "--attack", "gradient", "--attacked", 5)


@pytest.fixture(scope="module")
def own(folder, classifier, tmp_path_factory):
    """The run folder of a saved model with four classes."""
    out = tmp_path_factory.mktemp("own")
    measure(classifier, folder, out, *OURS)
    return out


def text_of(out):
    page = (out / "report.html").read_text()
    return html.unescape(re.sub(r"<[^>]+>", " ", page)).replace("\n", " ")


def table(out, title):
    """Rows of the table under a heading, by column."""
    page = (out / "report.html").read_text()
    part = page.split(f"<h2>{title}</h2>")[1].split("<h2>")[0]
    rows = [
        [html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)]
        for row in re.findall(r"<tr>(.*?)</tr>", part, re.DOTALL)
    ]
    return pd.DataFrame(rows[1:], columns=rows[0])


def test_the_page_shows_the_medians_of_the_table(application):
    frame = pd.read_parquet(application / "images.parquet")
    shown = table(application, "Medians").set_index("measure")
    columns = {
        "linearized robustness ρ~, eq. (9)": frame["linearized_robustness"],
        "alignment α, eq. (7)": frame["alignment"],
        "binarized alignment α†, eq. (11)": frame["binarized_alignment"],
        "bias part |β†| / ‖g†‖": frame["bias_margin"].abs() / frame["binarized_gradient_norm"],
        "bound (14): α† + bias part": frame["theorem2_binarized"],
        "bound (15): α + ‖x‖ · gap + bias part": frame["theorem2"],
        "bound (16): α at x̂ + ‖x̂‖ · gap at x̂": frame["theorem3"],
        "α at the bias-shifted input x̂": frame["shifted_alignment"],
        "‖x‖": frame["input_norm"],
        "‖x̂‖": frame["shifted_input_norm"],
    }
    others = {
        "gap ‖g†/‖g†‖ − g/‖g‖‖": frame["gradient_gap"],
        "gap at x̂, ‖g†/‖g†‖ − ĝ/‖ĝ‖‖": frame["shifted_gradient_gap"],
        "‖g‖ of the predicted logit": frame["gradient_norm"],
        "‖g†‖ of the margin": frame["binarized_gradient_norm"],
        "margin Ψ† to the runner-up": frame["margin"],
        "its homogeneous part ⟨x, g†⟩": frame["homogeneous_margin"],
        "its bias part β†": frame["bias_margin"],
    }
    assert set(shown.index) == {*columns, *others}
    for name, values in {**columns, **others}.items():
        expected = np.quantile(values.astype(float), (0.25, 0.5, 0.75))
        cells = shown.loc[name, ["lower quartile", "median", "upper quartile"]].astype(float)
        np.testing.assert_allclose(cells, expected, rtol=6e-4, atol=1e-30, err_msg=name)
        # the preprocessing divides by 127.5
        pixels = shown.loc[name, "median in pixel units"]
        if name in columns:
            np.testing.assert_allclose(float(pixels), 127.5 * expected[1], rtol=6e-4)
        else:
            assert pixels == ""
    csv = pd.read_csv(application / "medians.csv", keep_default_na=False)
    assert list(csv["measure"]) == list(shown.index)


def test_random_weights_are_said_loudly(application, own):
    text = text_of(application)
    assert "MobileNet on 6 images (random weights)" in text
    assert "RANDOM WEIGHTS: an untrained network" in text
    assert "random" not in text_of(own).lower().replace("random directions", "")


def test_the_page_says_what_was_measured(application, own, folder, classifier):
    for out, name in ((application, "keras_applications:MobileNet"), (own, str(classifier))):
        text, settings = text_of(out), json.loads((out / "run.json").read_text())["settings"]
        assert f"{name}: " in text
        assert settings["weights_sha256"] in text
        assert settings["images_sha256"] in text
        assert f"{settings['weights_sha256'][:12]}…" in text
        assert str(folder) in text
        assert re.search(r"Left out \(1\): a/broken.jpg is corrupt and skipped \(.+\)\.", text)
    assert "18,464 parameters, 1,000 classes, input 32 x 32 x 3" in text_of(application)
    assert "0..255 becomes -1..1." in text_of(application)
    assert "4 classes, input 20 x 24 x 3" in text_of(own)
    assert "0..255 becomes -2.118..2.249, -2.036..2.429, -1.804..2.64 by channel" in text_of(own)


def test_the_command_as_users_start_it(folder, classifier, tmp_path):
    few = ("--preprocessing", "torch", "--limit", 2, "--pictured", 1)
    given = ("--model", classifier, "--images", folder, "--out", tmp_path / "run", *few)
    done = tfrobust("measure", *given)
    assert done.returncode == 0
    assert "report: file://" in done.stdout
    # no noise: what tfrobust warns of alone
    (warned,) = done.stderr.splitlines()
    assert warned.startswith("warning: the homogeneous decomposition is not exact")


def test_the_page_needs_no_other_file(application, own):
    for out, count in ((application, 2), (own, 3)):
        page = (out / "report.html").read_text()
        assert len(re.findall(r'<img src="data:image/png;base64,iVBOR', page)) == count
        assert re.findall(r'(?:src|href)="(?!data:)', page) == []


def test_an_application_gets_its_own_preprocessing(application, folder):
    keras.utils.set_random_seed(0)
    with pytest.warns(UserWarning, match="broken"):
        images, names = read_images(folder, size=(32, 32), limit=6)
    x = images / np.float32(127.5) - 1
    with settled(folder):
        model = reference_models.build("mobilenet", input_shape=(32, 32, 3))
    frame = pd.read_parquet(application / "images.parquet")
    assert tuple(frame["file"]) == names
    norms, alignments = norms_and_alignments(x, input_gradient(model, x))
    np.testing.assert_allclose(frame["gradient_norm"], norms, rtol=1e-3)
    np.testing.assert_allclose(frame["alignment"], alignments, rtol=1e-2)
    csv = pd.read_csv(application / "images.csv")
    pd.testing.assert_frame_equal(csv, frame, check_dtype=False, rtol=1e-5)


def norms_and_alignments(x, gradient):
    flat = gradient.reshape(len(x), -1).astype(float)
    norms = np.linalg.norm(flat, axis=1)
    return norms, np.abs((x.reshape(len(x), -1) * flat).sum(axis=1)) / norms


def test_what_the_sketch_says_of_itself(application, own):
    frame = pd.read_parquet(application / "images.parquet")
    counts = frame["exact_gradients"]
    assert counts.max() < 1000
    said = (
        f"Sketch of 64 random directions: of 1,000 classes' gradients, {counts.median():g} were "
        f"computed for the median image, at most {counts.max()}. The runner-up of an image is "
        "wrong with probability at most 1e-06"
    )
    assert said in text_of(application)
    assert list(table(application, "Every image")["exact gradients"].astype(int)) == list(counts)
    assert "Exact: the gradients of all 4 classes, for every image." in text_of(own)
    assert "exact gradients" not in table(own, "Every image")


@pytest.fixture(scope="module")
def by_hand(folder, classifier):
    """The saved model and its input, by NumPy's arithmetic."""
    model = reference_models.load(classifier)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))
    files.remove("a/broken.jpg")
    images, _ = read_images([folder / name for name in files], size=(20, 24))
    mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    return model, (images / 255 - mean) / deviation, files


def test_a_saved_model_is_measured_on_every_image(own, by_hand):
    model, x, files = by_hand
    frame = pd.read_parquet(own / "images.parquet")
    assert list(frame["file"]) == files
    assert list(frame["predicted"]) == list(model.predict(x, verbose=0).argmax(axis=1))
    norms, alignments = norms_and_alignments(x, input_gradient(model, x))
    np.testing.assert_allclose(frame["gradient_norm"], norms, rtol=1e-4)
    np.testing.assert_allclose(frame["alignment"], alignments, rtol=1e-3)
    # the softmax was left out: logits' margins are differences of log-probabilities
    log = np.log(model.predict(x, verbose=0).astype(float))
    rows = np.arange(len(x))
    margins = log[rows, frame["predicted"]] - log[rows, frame["runner_up"]]
    np.testing.assert_allclose(frame["margin"], margins, atol=1e-5)
    shown = table(own, "Every image")
    assert list(shown["file"]) == files
    np.testing.assert_allclose(shown["α"].astype(float), frame["alignment"], rtol=6e-4)


def test_channels_of_different_scale_have_no_pixel_unit(own):
    assert "They are not given in pixel units" in text_of(own)
    assert "median in pixel units" not in table(own, "Medians")
    assert "ρ~ in pixel units" not in table(own, "Every image")


def test_a_model_outside_the_theorems_class_is_told_of_on_the_page(own, application):
    errors = pd.read_parquet(own / "images.parquet")["decomposition_error"]
    assert errors.max() > 1e-3
    assert f"by {errors.median():.2g} of the largest part at the median" in text_of(own)
    assert f"at the median, {errors.max():.2g} at worst" in text_of(own)
    assert "Warning: the homogeneous decomposition is not exact for this network" in text_of(own)
    assert "Warning: the homogeneous decomposition" in text_of(application)  # capped ReLUs


def test_the_attack(own, by_hand):
    model, x, files = by_hand
    frame = pd.read_parquet(own / "attack.parquet")
    assert list(frame["file"]) == files[:5]
    low, high = float(x.min()), float(x.max())
    assert low >= -2.12
    assert high <= 2.65
    expected = attacks.minimal(
        model, x[:5], "gradient", value_range=(-0.485 / 0.229, (1 - 0.406) / 0.225)
    )
    np.testing.assert_allclose(frame["distance"], expected.distance, rtol=1e-2)
    finite = np.isfinite(frame["distance"])
    found = finite.sum()
    assert found > 0
    assert f"The attack changed the class of {found} (others" in text_of(own)
    assert f"at a median of {frame['distance'][finite].median():.4g} in" in text_of(own)
    shown = table(own, "Every image")["gradient"]
    assert all(shown[5:] == "")
    assert all(shown[:5] != "")


def test_saliency_from_the_least_to_the_most_robust(application):
    keras.utils.set_random_seed(0)
    frame = pd.read_parquet(application / "images.parquet")
    order = np.argsort(frame["linearized_robustness"])
    with np.load(application / "saliency.npz") as saved:
        assert list(saved["rows"]) == list(order.iloc[[0, 2, 5]])
        norms = np.sqrt((saved["gradients"].astype(float) ** 2).sum(axis=(1, 2, 3)))
        np.testing.assert_allclose(norms, frame["gradient_norm"].iloc[saved["rows"]], rtol=1e-3)
    assert "3 of 6 images, spread evenly by rank from the least" in text_of(application)


def contents(out):
    return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def never(*arguments, **keywords):
    raise AssertionError("computed again")


@pytest.fixture
def no_computing(monkeypatch):
    monkeypatch.setattr(alignment, "measure", never)
    monkeypatch.setattr(attacks, "minimal", never)
    monkeypatch.setattr(steps, "input_gradient", never)


def test_a_second_call_writes_nothing(own, folder, classifier, no_computing, capsys):
    before = contents(own)
    measure(classifier, folder, own, *OURS)
    assert contents(own) == before
    assert "measured before" in capsys.readouterr().out


def test_a_second_call_of_an_application(application, folder, no_computing):
    before = contents(application)
    measure_application(folder, application)
    assert contents(application) == before


def test_a_page_of_other_settings_is_not_shown(own, folder, classifier, tmp_path, no_computing):
    """Where the record was deleted, the page in the folder is of unknown settings."""
    out = shutil.copytree(own, tmp_path / "run")
    (out / "run.json").unlink()
    with pytest.raises(SystemExit, match=r"page\.json is the result of other settings"):
        measure(classifier, folder, out, *OURS, "--seed", 1)
    (out / "page.json").unlink()
    with pytest.raises(SystemExit, match=r"images\.parquet is the result of other settings"):
        measure(classifier, folder, out, *OURS, "--seed", 1)


@pytest.mark.slow
def test_a_lost_page_is_drawn_from_the_steps(
    own, folder, classifier, tmp_path, no_computing, capsys
):
    out = shutil.copytree(own, tmp_path / "run")
    (out / "report.html").unlink()
    measure(classifier, folder, out, *OURS)
    capsys.readouterr()
    assert (out / "report.html").read_text() == (own / "report.html").read_text()


def test_a_changed_model_file_is_noticed(own, folder, classifier, tmp_path):
    copy = shutil.copy(classifier, tmp_path / "small.keras")
    out = tmp_path / "run"
    measure(copy, folder, out, "--preprocessing", "unit", "--limit", 2)
    reference_models.save(small_classifier(seed=1), copy)
    with pytest.raises(SystemExit, match=r"^error: .*holds a run with weights_sha256 = .*folder"):
        measure(copy, folder, out, "--preprocessing", "unit", "--limit", 2)


def test_changed_images_are_noticed(own, folder, classifier, tmp_path):
    images = shutil.copytree(folder, tmp_path / "images")
    out = tmp_path / "run"
    more = ("--preprocessing", "unit", "--limit", 2, "--pictured", 0)
    measure(classifier, images, out, *more)
    assert "saliency.npz" not in [path.name for path in out.iterdir()]
    (images / "a" / "2.jpg").write_bytes(jpeg(np.random.default_rng(5)))
    with pytest.raises(SystemExit, match="holds a run with images_sha256"):
        measure(classifier, images, out, *more)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of a MobileNet with 5 classes."""
    path = tmp_path_factory.mktemp("weights") / "five.weights.h5"
    keras.utils.set_random_seed(3)
    reference_models.build("mobilenet", classes=5, input_shape=(32, 32, 3)).save_weights(path)
    return path


def test_a_weight_file(folder, weights):
    settings = Settings("mobilenet", str(folder), str(weights), classes=5, size=32, limit=2)
    resolved, subject = prepare(settings)
    assert subject.classes == 5
    assert resolved.search == "exact"
    assert resolved.weights_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    keras.utils.set_random_seed(3)
    model = reference_models.build("mobilenet", classes=5, input_shape=(32, 32, 3))
    np.testing.assert_array_equal(
        subject.model.predict(subject.x, verbose=0), model.predict(subject.x, verbose=0)
    )


@pytest.mark.slow
def test_the_usual_size_of_an_application(folder):
    settings = Settings("MobileNetV3Small", str(folder), "none", limit=2)
    assert prepare(settings)[1].x.shape == (2, 224, 224, 3)


@pytest.mark.slow
def test_more_saliency_maps_than_fit_into_a_row(folder, classifier, tmp_path):
    more = ("--preprocessing", "none", "--pictured", 9)
    measure(classifier, folder, tmp_path, *more)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<h2>Saliency, continued</h2>") == 1
    assert "A network unit is a pixel unit of 0..255." in text_of(tmp_path)


def test_a_greyscale_model(folder, tmp_path):
    model = small_classifier(channels=1, activation="relu", head=None)
    path = reference_models.save(model, tmp_path / "grey.keras")
    measure(path, folder, tmp_path / "run", "--preprocessing", "unit")
    files = pd.read_parquet(tmp_path / "run" / "images.parquet")
    images, _ = read_images([folder / name for name in files["file"]], size=(20, 24))
    grey = images @ np.float32([0.299, 0.587, 0.114])
    lengths = np.sqrt((grey.astype(float) ** 2).sum(axis=(1, 2))) / 255
    np.testing.assert_allclose(files["input_norm"], lengths, rtol=1e-5)
    assert "The model takes greyscale" in text_of(tmp_path / "run")
    assert "inside Theorem 1's class" in text_of(tmp_path / "run")
    assert "Warning" not in text_of(tmp_path / "run")
    error = pytest.raises(SystemExit, match="takes greyscale images: choose unit, tf or none")
    with error:
        measure(path, folder, tmp_path / "r", "--preprocessing", "caffe")


def test_class_names_where_keras_has_them(tmp_path, monkeypatch):
    index = {str(k): [f"n{k}", f"name_{k}"] for k in range(1000)}
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    settings = Resolved("resnet50", "folder", weights="imagenet")
    subject = Subject(*[None] * 2, 1000, *[None] * 8)
    assert class_names(settings, subject) is None
    path = tmp_path / "models" / "imagenet_class_index.json"
    path.parent.mkdir()
    path.write_text(json.dumps(index))
    assert class_names(settings, subject)[999] == "name 999"
    assert class_names(Resolved("m.keras", "folder"), subject) is None
    path.write_text("{")
    with pytest.raises(OSError, match="delete the file"):
        class_names(settings, subject)


def refused(match, model, images, tmp_path, *more):
    out = tmp_path / "never"
    with pytest.raises(SystemExit, match=match) as stop:
        measure(model, images, out, *more)
    assert str(stop.value).startswith("error: ")
    assert "\n" not in str(stop.value)
    assert not out.exists()


@pytest.mark.parametrize(
    ("model", "more", "match"),
    [
        ("keras_applications:MobilNet", (), "unknown model 'keras_applications:MobilNet'.*mean"),
        ("mnist_cnn", (), "mnist_cnn has no pretrained weights: train it"),
        ("small.weights.h5", (), "is no .keras file. A file of weights alone goes with"),
        ("none.keras", ("--preprocessing", "unit"), "there is no model file none.keras"),
        ("mobilenet", ("--weights", "none.h5", "--size", 32), "there is no weight file none.h5"),
        ("mobilenet", ("--weights", "none", "--size", 8), "must be at least 32x32"),
        ("mobilenet", ("--classes", 5), "ImageNet weights have 1000 classes"),
        ("mobilenet", ("--preprocessing", "cafe"), "unknown preprocessing 'cafe'.*mean 'caffe'"),
        ("mobilenet", ("--batch-size", 0), "batch_size must be at least 1, got 0"),
        ("mobilenet", ("--pictured", -1), "pictured must be at least 0, got -1"),
        ("mobilenet", ("--directions", 0), "directions must be at least 1, got 0"),
        ("mobilenet", ("--failure-probability", 2), "must lie between 0 and 1, got 2"),
        ("mobilenet", ("--strategy", "multi_worker"), "no other workers: set TF_CONFIG"),
    ],
)
def test_settings_that_a_user_can_mend(model, more, match, folder, tmp_path, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    refused(match, model, folder, tmp_path, *more)


def test_a_model_file_does_not_tell_its_preprocessing(folder, classifier, tmp_path):
    refused(
        r"--preprocessing is needed for .*small\.keras: .*Choose none \(0\.\.255.*caffe",
        *(classifier, folder, tmp_path),
    )


def test_settings_that_do_not_go_with_a_model_file(folder, classifier, weights, tmp_path):
    unit = ("--preprocessing", "unit")
    refused("leave these settings out", classifier, folder, tmp_path, *unit, "--weights", weights)
    refused(
        "takes images of 20x24 pixels, not 32: leave --size out",
        *(classifier, folder, tmp_path, *unit, "--size", 32),
    )
    refused(
        r"does not fit .*that head has 5 classes: build with classes=5",
        *("mobilenet", folder, tmp_path, "--size", 32, "--weights", weights),
    )


@pytest.mark.slow
def test_a_model_of_any_size_needs_one(folder, tmp_path):
    model = small_classifier(size=(None, None))
    path = reference_models.save(model, tmp_path / "any.keras")
    unit = ("--preprocessing", "unit")
    refused("takes images of any size: give one by --size", path, folder, tmp_path, *unit)
    measure(path, folder, tmp_path / "run", *unit, "--size", 16, "--limit", 2)
    assert "input 16 x 16 x 3" in text_of(tmp_path / "run")


def test_models_that_are_no_classifiers_of_images(folder, tmp_path):
    unit = ("--preprocessing", "unit")
    path = reference_models.save(small_classifier(head="sigmoid"), tmp_path / "s.keras")
    refused("ends in sigmoid", path, folder, tmp_path, *unit)
    model = keras.Sequential([keras.Input((7,)), layers.Dense(3)])
    path = reference_models.save(model, tmp_path / "v.keras")
    refused(r"takes inputs of shape \(None, 7\); images are", path, folder, tmp_path, *unit)


def test_folders_without_images(folder, classifier, tmp_path):
    unit = ("--preprocessing", "unit")
    refused("there is no folder", classifier, tmp_path / "none", tmp_path, *unit)
    empty = tmp_path / "empty"
    empty.mkdir()
    refused("no image .* in .*empty", classifier, empty, tmp_path, *unit)
    refused(
        "max_corrupt=0: a/broken.jpg",
        *(classifier, folder, tmp_path, *unit, "--max-corrupt", 0),
    )
    refused("limit must be at least 1", classifier, folder, tmp_path, *unit, "--limit", 0)


@pytest.mark.slow
def test_weights_of_a_dense_head_at_another_size(folder, tmp_path):
    """The shapes of VGG16's ImageNet file; nothing is written of the values."""
    path = tmp_path / "vgg16.h5"
    model = reference_models.build("vgg16", input_shape=(32, 32, 3))
    with h5py.File(path, "w") as file:
        own = [layer for layer in model.layers if layer.weights]
        file.attrs["layer_names"] = [layer.name.encode() for layer in own]
        for layer in own:
            group = file.create_group(layer.name)
            group.attrs["weight_names"] = [b"kernel", b"bias"]
            kernel, bias = (tuple(variable.shape) for variable in layer.weights)
            kernel = (25088, 4096) if layer.name == "fc1" else kernel
            group.create_dataset("kernel", kernel, "float32")
            group.create_dataset("bias", bias, "float32")
    refused(
        r"'kernel' of layer 'fc1' has shape \(512, 4096\) in the model and \(25088, 4096\)",
        *("vgg16", folder, tmp_path, "--weights", path, "--size", 32),
    )


def test_the_imagenet_weights_without_a_network(folder, tmp_path, monkeypatch):
    def fail(*arguments, **keywords):
        raise OSError("Name or service not known")

    monkeypatch.setattr(file_utils, "urlretrieve", fail)
    monkeypatch.setattr(config, "_KERAS_DIR", str(tmp_path))
    refused("could not be downloaded.*weights=path", "mobilenet", folder, tmp_path, "--size", 32)


def test_every_setting_has_a_help_text(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["measure", "--help"])
    assert stop.value.code == 0
    words = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    for name in Settings.__dataclass_fields__:
        assert f"--{name.replace('_', '-')} " in words
    assert "Random directions of the sketch." in words
    assert "evenly spaced from the least to the most robust" in words


def test_unknown_values_stop_before_anything_is_read(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        measure("mobilenet", tmp_path, tmp_path / "o", "--attack", "gradientt")
    assert stop.value.code == 2
    assert "gradientt" in capsys.readouterr().err


def test_undefined_measures_are_counted(tmp_path):
    """A dead network: every gradient vanishes."""
    model = small_classifier(activation="relu", head=None)
    model.layers[0].set_weights([np.zeros((3, 3, 3, 6)), np.full(6, -1.0)])
    path = reference_models.save(model, tmp_path / "dead.keras")
    images = tmp_path / "images"
    images.mkdir()
    for k in range(3):
        picture = smooth(np.random.default_rng(k), 30, 30)
        (images / f"{k}.png").write_bytes(encoded(picture, "PNG"))
    more = ("--preprocessing", "unit", "--attack", "gradient")
    measure(path, images, tmp_path / "run", *more)
    assert "The attack changed no image's class" in text_of(tmp_path / "run")
    assert "left out: 3 images" in text_of(tmp_path / "run")
    assert set(table(tmp_path / "run", "Medians")["median"][:2]) == {""}
