"""Every Python block of the README and the guides runs, in its page's order."""

import matplotlib
import pytest
from helpers.documentation import GUIDES, README, blocks, name_of

matplotlib.use("agg")
pytestmark = pytest.mark.filterwarnings("ignore:the thesis's printed rules")


def run(page, folder, monkeypatch, namespace):
    """A page's blocks in one namespace, in a folder of its own; returns how many ran."""
    monkeypatch.chdir(folder)
    ran = 0
    for block in blocks(page):
        if block.language == "python" and block.not_run is None:
            code = "\n" * block.line + block.text  # a traceback shows the page's own line
            exec(compile(code, name_of(page), "exec"), namespace)
            ran += 1
    return ran


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The folder where the README's blocks ran, which leave classifier.keras there."""
    folder = tmp_path_factory.mktemp("readme")
    namespace = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run(README, folder, monkeypatch, namespace) == 1
    return folder, namespace


def test_the_readme_says_what_it_computes(classifier):
    folder, namespace = classifier
    assert (folder / "classifier.keras").is_file()
    assert len(namespace["measured"]) == len(namespace["images"])
    # the README prints the two in this order
    certified, attacked = namespace["certified"], namespace["attacked"]
    assert (certified.bound <= attacked.distance).all()
    assert certified.median() < attacked.median()


def test_the_home_page_makes_the_classifier_of_the_readme():
    """The guides rest on the home page's block; the README's runs in its stead."""
    (home,) = [block for block in blocks(GUIDES[0]) if block.language == "python"]
    (readme,) = [block for block in blocks(README) if block.language == "python"]
    for line in home.text.splitlines():
        if not line.startswith("from tfrobust import"):
            assert line.strip() in readme.text


@pytest.mark.parametrize("page", GUIDES[1:], ids=name_of)
def test_a_guide_runs(page, classifier, tmp_path, monkeypatch):
    (tmp_path / "classifier.keras").symlink_to(classifier[0] / "classifier.keras")
    assert run(page, tmp_path, monkeypatch, {}) > 0


def test_blocks_that_are_not_run_say_why():
    """Listed here, so that a block can leave the tests only by an edit of this list."""
    skipped = [
        (name_of(block.page), block.not_run)
        for page in (README, *GUIDES)
        for block in blocks(page)
        if block.not_run
    ]
    assert skipped == [
        ("docs/guides/data.md", "needs ImageNet in /data/imagenet"),
        ("docs/guides/measure.md", "builds ResNet50 and downloads its ImageNet weights"),
        ("docs/guides/scale-out.md", "ResNet50 on several devices"),
        ("docs/guides/scale-out.md", "needs a Slurm cluster and dask-jobqueue"),
    ]


@pytest.mark.parametrize("page", [README, *GUIDES], ids=name_of)
def test_blocks_that_are_not_run_are_python_all_the_same(page):
    for block in blocks(page):
        if block.language == "python":
            compile(block.text, name_of(page), "exec")
