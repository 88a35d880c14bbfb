"""Figures and pages of one made-up cohort and of two: what is in the axes and on the page."""

import base64
import dataclasses
import html
import json
import re

import numpy as np
import pandas as pd
import pytest
from helpers.commands import usage_error

from experiments.common.members import Progress
from experiments.common.page import write_page
from experiments.etmann2019 import both, claims, figures, page, study
from experiments.etmann2019.results import ATTACK_NAMES, Cohort, Member
from tfrobust.alignment import Alignment
from tfrobust.commands import run
from tfrobust.report import Run
from tfrobust.report.figures import image_grid
from tfrobust.report.results import seal_of, write_arrays, write_frame, write_json

SHAPES = {"MNIST": (7, 7, 1), "digits": (8, 8, 1), "ImageNet": (9, 11, 3)}
MEASURES = (
    *("margin", "linearized_robustness", "alignment", "binarized_alignment"),
    *("homogeneous_margin", "bias_margin", "gradient_norm", "binarized_gradient_norm"),
    *("gradient_gap", "input_norm", "theorem2_binarized", "theorem2", "shifted_alignment"),
    *("shifted_gradient_gap", "shifted_input_norm", "theorem3"),
)


def made_up(
    name="MNIST",
    weights=(10.0, 100.0, 1000.0, 10_000.0),
    attacks=tuple(ATTACK_NAMES),
    images=30,
    attacked=30,
    pictures=8,
    accuracy=0.9,
    seed=0,
):
    """A cohort of random measures whose robustness grows with lambda."""
    rng = np.random.default_rng(seed)
    shape = SHAPES[name.removesuffix(" sample")]
    members = []
    for place, weight in enumerate(weights):
        columns = {key: rng.uniform(0.1, 1, images) for key in MEASURES}
        columns["linearized_robustness"] += 3 * place
        columns["bias_margin"] = columns["margin"] - columns["homogeneous_margin"]
        counts = {key: rng.integers(0, 9, images) for key in ("predicted", "runner_up")}
        same = rng.random(images) < 0.9
        measures = Alignment(**columns, **counts, same_class_at_shift=same)
        distances = {}
        summary = {
            "lambda": weight,
            "classes": 10,
            "test_accuracy": accuracy,
            "undefined_rows": measures.undefined,
            **{f"median_{key}": value for key, value in measures.medians().items()},
        }
        for attack in attacks:
            values = 2 * place + rng.uniform(0.5, 1, attacked)
            values[0] = np.inf
            distances[attack] = pd.DataFrame({"distance": values})
            summary[f"median_{attack}"] = float(np.median(values[1:]))
            summary[f"success_{attack}"] = 1 - 1 / attacked
        gradients = rng.normal(size=(pictures, *shape))
        members.append(
            Member({"lambda": weight}, summary, measures.to_frame(), distances, gradients)
        )
    settings = {"lambdas": list(weights), "penalty_scale": "batch_mean", "seed": seed}
    record = {
        "settings": settings,
        "started": "2026-01-01T00:00:00+00:00",
        "versions": {"python": "3.11", "keras": f"3.{seed}"},
    }
    return Cohort(
        name=name,
        lead=f"What <{name}> is.",
        members=tuple(members),
        pictures=rng.uniform(0.1, 0.9, (pictures, *shape)),
        settings=settings,
        record=record,
    )


IMAGENET = (1e4, 3.162e5, 1e7)


@pytest.fixture(scope="module")
def mnist():
    return made_up()


@pytest.fixture(scope="module")
def imagenet():
    return made_up("ImageNet sample", IMAGENET, attacked=12, images=20, pictures=6, seed=1)


def points(axis):
    return np.asarray(axis.collections[0].get_offsets())


def titles(figure):
    return [half.get_suptitle() for half in figure.subfigs]


@pytest.mark.parametrize(("name", "data"), [("figure2", "ImageNet"), ("figure3", "digits")])
def test_medians_by_each_estimate(name, data):
    cohort = made_up(data, (1000.0, 10.0, 100.0))
    figure = figures.plot(name, [cohort])
    *panels, bar = figure.axes
    assert [axis.get_xlabel() for axis in panels] == [
        "linearized robustness, median",
        "gradient attack, median distance",
        "l2 basic iterative, median distance",
        "Carlini-Wagner l2, median distance",
    ]
    assert bar.get_ylabel() == figures.LAMBDA
    ordered = sorted(cohort.members, key=lambda member: member.weight)
    for axis, key in zip(panels, ("linearized_robustness", *ATTACK_NAMES), strict=True):
        assert axis.get_ylabel() == "median alignment α"
        expected = [
            (each.summary[f"median_{key}"], each.alignment["alignment"].median())
            for each in ordered
        ]
        np.testing.assert_allclose(points(axis), expected)


def drawn(cohorts):
    return [drawing.file for drawing in figures.drawings(cohorts)]


def test_figure_2_is_of_imagenet_and_3_of_the_others(imagenet, mnist):
    assert drawn([imagenet, mnist]) == [f"figure{number}" for number in range(2, 11)]
    assert drawn([imagenet]) == [f"figure{number}" for number in (2, *range(4, 11))]
    assert drawn([mnist]) == [f"figure{number}" for number in range(3, 11)]


def test_a_caption_says_which_half_is_which(imagenet, mnist):
    pair = [imagenet, mnist]
    assert figures.caption("figure4", pair).endswith("Left: ImageNet sample; right: MNIST.")
    assert figures.caption("figure4", pair[::-1]).endswith("Left: MNIST; right: ImageNet sample.")
    assert figures.caption("figure2", pair).endswith("On ImageNet sample.")
    assert figures.caption("figure3", pair).endswith("On MNIST.")
    assert "MNIST" not in figures.caption("figure4", [mnist])


COLUMNS = {
    "figure4": ("linearized_robustness", "alignment"),
    "figure9": ("margin", "homogeneous_margin"),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("swapped", [False, True])
def test_pointwise_figures_have_a_column_a_data_set(name, swapped, imagenet, mnist):
    cohorts = [mnist, imagenet] if swapped else [imagenet, mnist]
    figure = figures.plot(name, cohorts)
    assert titles(figure) == [cohort.name for cohort in cohorts]
    assert figure.subfigs[0].bbox.x1 <= figure.subfigs[1].bbox.x0
    left, right = (half.axes for half in figure.subfigs)
    expected = {
        "MNIST": ["least robust, λ = 10", "middle, λ = 1,000", "most robust, λ = 10,000"],
        "ImageNet sample": [
            "least robust, λ = 10,000",
            "middle, λ = 316,200",
            "most robust, λ = 10,000,000",
        ],
    }
    for cohort, axes in zip(cohorts, (left, right), strict=True):
        assert [axis.get_title().split("\n")[0] for axis in axes] == expected[cohort.name]
        by_weight = {figures.lambda_label(each.weight): each for each in cohort.members}
        for axis in axes:
            member = by_weight[re.search("λ = [0-9,]+", axis.get_title())[0]]
            table = member.alignment[list(COLUMNS[name])]
            np.testing.assert_allclose(points(axis), table)
            assert f"n = {len(table)}" in axis.get_title()


def test_a_pointwise_figure_alone_is_one_row(mnist):
    figure = figures.plot("figure4", [mnist])
    assert figure.subfigs == []
    assert figure.get_suptitle() == ""
    assert len(figure.axes) == 3
    assert len({axis.get_subplotspec().rowspan.start for axis in figure.axes}) == 1


def test_only_attacked_images_are_in_figure_5(imagenet, mnist):
    figure = figures.plot("figure5", [imagenet, mnist])
    for half, cohort in zip(figure.subfigs, (imagenet, mnist), strict=True):
        for axis in half.axes:
            (member,) = (
                each
                for each in cohort.members
                if axis.get_title().split("\n")[0].endswith(figures.lambda_label(each.weight))
            )
            distance = member.distances["carlini_wagner"]["distance"].to_numpy()
            robustness = member.alignment["linearized_robustness"].to_numpy()[: len(distance)]
            assert len(points(axis)) == len(distance) - 1  # one was not fooled
            np.testing.assert_allclose(points(axis), np.stack([robustness, distance], 1)[1:])
            (line,) = axis.lines
            np.testing.assert_array_equal(line.get_xdata(), line.get_ydata())


def test_a_cohort_with_fewer_models_has_fewer_panels(mnist):
    pair = made_up("ImageNet", (1e4, 1e7))
    left, right = figures.plot("figure4", [pair, mnist]).subfigs
    words = [axis.get_title().split("\n")[0] for axis in left.axes]
    assert words == ["least robust, λ = 10,000", "most robust, λ = 10,000,000"]
    assert len(right.axes) == 3
    for ours, theirs in zip(left.axes, right.axes, strict=False):
        own, other = (a.get_subplotspec().get_geometry() for a in (ours, theirs))
        assert own == other  # rows are level
    (axis,) = figures.plot("figure4", [made_up(weights=(10.0,))]).axes
    assert axis.get_title().startswith("λ = 10\n")


def test_attacks_that_were_not_made_are_left_out(mnist):
    some = made_up("ImageNet", IMAGENET, attacks=("gradient",))
    *panels, _ = figures.plot("figure2", [some]).axes
    assert [axis.get_xlabel() for axis in panels] == [
        "linearized robustness, median",
        "gradient attack, median distance",
    ]
    assert "figure5" not in drawn([some])
    assert "figure5" in drawn([some, mnist])
    alone = figures.plot("figure5", [some, mnist])
    assert alone.subfigs == []
    assert len(alone.axes) == 3
    assert figures.caption("figure5", [some, mnist]).endswith("On MNIST.")
    table = page.models_table(some.members)
    assert "gradient attack" in table
    assert not {"l2 basic iterative", "Carlini-Wagner l2", "corr(ρ~, CW)"} & set(table)
    verdicts = {each.statement: each for each in claims.judge(some.members, saturates=False)}
    unmade = verdicts["Median alignment grows with median robustness (l2 basic iterative)"]
    assert (unmade.verdict, unmade.figure) == ("not tested", "only 0 usable models")
    predicts = "Linearized robustness predicts the Carlini-Wagner distance image by image"
    assert verdicts[predicts].verdict == "not tested"


@pytest.mark.parametrize(
    ("name", "summands"),
    [
        ("figure6", ("linearized_robustness", "binarized_alignment", "bias", "theorem2_binarized")),
        ("figure7", ("linearized_robustness", "alignment", "gap", "bias", "theorem2")),
        ("figure8", ("linearized_robustness", "shifted_alignment", "shifted_gap", "theorem3")),
    ],
)
def test_summands_are_medians_over_images(name, summands, imagenet, mnist):
    figure = figures.plot(name, [imagenet, mnist])
    assert titles(figure) == ["ImageNet sample", "MNIST"]
    for half, cohort in zip(figure.subfigs, (imagenet, mnist), strict=True):
        (axis,) = half.axes
        assert axis.get_xscale() == "log"
        assert len(axis.lines) == len(summands)
        for line, summand in zip(axis.lines, summands, strict=True):
            np.testing.assert_array_equal(line.get_xdata(), cohort.settings["lambdas"])
            tables = [member.alignment for member in cohort.members]
            expected = [
                {
                    "bias": lambda t: t["bias_margin"].abs() / t["binarized_gradient_norm"],
                    "gap": lambda t: t["input_norm"] * t["gradient_gap"],
                    "shifted_gap": lambda t: t["shifted_input_norm"] * t["shifted_gradient_gap"],
                }.get(summand, lambda t, summand=summand: t[summand])(table).median()
                for table in tables
            ]
            np.testing.assert_allclose(line.get_ydata(), expected)
    (legend,) = figure.legends
    words = [text.get_text() for text in legend.get_texts()]
    assert words[0] == "ρ~"
    assert "their sum" in words[-1]
    assert len(words) == len(summands)
    alone = figures.plot(name, [mnist])
    assert alone.axes[0].get_legend() is not None


def test_summands_far_above_robustness_get_a_logarithmic_axis(mnist):
    members = []
    for member in mnist.members:
        summary = {**member.summary, "median_theorem2": 1e4}
        members.append(dataclasses.replace(member, summary=summary))
    far = dataclasses.replace(mnist, name="ImageNet", members=tuple(members))
    left, right = figures.plot("figure7", [far, mnist]).subfigs
    assert left.axes[0].get_yscale() == "log"
    assert left.axes[0].get_ylabel().endswith("(log scale)")
    assert right.axes[0].get_yscale() == "linear"
    assert right.axes[0].get_ylim()[0] == 0


def shown(axis):
    (image,) = axis.images
    return np.asarray(image.get_array())


def test_figure_10_has_two_grids(imagenet, mnist):
    figure = figures.plot("figure10", [imagenet, mnist])
    assert titles(figure) == ["ImageNet sample", "MNIST"]
    for half, cohort in zip(figure.subfigs, (imagenet, mnist), strict=True):
        least, most = cohort.members[0], cohort.members[-1]
        grid = np.array(half.axes, object).reshape(6, 4)
        names = [line[0].get_ylabel().replace("\n", " ") for line in grid]
        row = ["image", figures.lambda_label(least.weight), figures.lambda_label(most.weight)]
        assert names == row * 2
        count = len(cohort.pictures)
        for place in range(8):
            image, first, second = grid[3 * (place // 4) :, place % 4][:3]
            if place >= count:
                assert [len(axis.images) for axis in (image, first, second)] == [0, 0, 0]
                continue
            np.testing.assert_array_equal(shown(image), cohort.pictures[place].squeeze())
            for axis, member in ((first, least), (second, most)):
                np.testing.assert_allclose(shown(axis), member.gradients[place].sum(-1))


def test_figure_10_alone_and_without_degenerate_models(mnist):
    members = list(mnist.members)
    members[-1] = dataclasses.replace(
        members[-1], summary={**members[-1].summary, "test_accuracy": 0.1}
    )
    cohort = dataclasses.replace(mnist, members=tuple(members))
    grid = np.array(figures.plot("figure10", [cohort]).axes, object).reshape(3, 8)
    names = [line[0].get_ylabel().replace("\n", " ") for line in grid]
    assert names == ["image", "λ = 10", "λ = 1,000"]
    # with no sound model, the others have to do
    hopeless = made_up("ImageNet", IMAGENET, accuracy=0.1)
    assert len(figures.plot("figure4", [hopeless]).axes) == 3


def test_a_model_without_any_defined_robustness_is_no_extreme(mnist):
    members = list(mnist.members)
    summary = {**members[-1].summary, "median_linearized_robustness": float("nan")}
    members[-1] = dataclasses.replace(members[-1], summary=summary)
    cohort = dataclasses.replace(mnist, members=tuple(members))
    words = [axis.get_title().split("\n")[0] for axis in figures.plot("figure4", [cohort]).axes]
    assert words[-1] == "most robust, λ = 1,000"


def test_image_grids_show_colour(rng, caplog):
    pictures = rng.random((2, 5, 6, 3))
    pictures[0, 0, 0] = 1 + 1e-7  # rounding
    maps = rng.normal(size=(2, 5, 6, 3))
    maps[1] = np.abs(maps[1])  # no negative value, but beside one that has some
    first, second, third, fourth = image_grid([("image", pictures), ("map", maps)]).axes
    np.testing.assert_array_equal(shown(first), np.clip(pictures[0], 0, 1))
    np.testing.assert_array_equal(shown(second), pictures[1])
    assert caplog.messages == []  # matplotlib complains of values above 1
    for axis, gradient in ((third, maps[0]), (fourth, maps[1])):
        np.testing.assert_allclose(shown(axis), gradient.sum(-1))
        low, high = axis.images[0].get_clim()
        assert low == -high


@dataclasses.dataclass(frozen=True)
class Lambdas:
    lambdas: tuple[float, ...]


def written(folder, cohort):
    """The run folder that `read` reads a cohort from."""
    folder.mkdir()
    seal = seal_of(cohort.record)
    (folder / "run.json").write_text(json.dumps({**cohort.record, "results": seal}))
    members = study.members_of(Lambdas(tuple(member.weight for member in cohort.members)))
    shared = {"members": [dataclasses.asdict(member) for member in members]}
    shared |= {"name": cohort.name, "lead": cohort.lead}
    write_json(folder / "cohort.json", shared, seal)
    write_arrays(folder / "pictures.npz", {"pictures": cohort.pictures}, seal)
    for member, named in zip(cohort.members, members, strict=True):
        place = folder / named.folder
        place.mkdir(parents=True)
        write_json(place / "summary.json", member.summary, seal)
        write_frame(place / "alignment.parquet", member.alignment, seal)
        for attack, table in member.distances.items():
            write_frame(place / f"attack-{attack}.parquet", table, seal)
        write_arrays(place / "gradients.npz", {"gradients": member.gradients}, seal)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, imagenet, mnist):
    folder = tmp_path_factory.mktemp("runs")
    return written(folder / "imagenet", imagenet), written(folder / "mnist", mnist)


def headings(text):
    return re.findall("<h2>(.*?)</h2>", text)


def tables(text):
    """Cells of every table by the heading above it."""
    found = {}
    for part in text.split("<h2>")[1:]:
        rows = re.findall("<tr>(.*?)</tr>", part, re.DOTALL)
        cells = [re.findall("<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
        if cells:
            found[part.split("</h2>")[0]] = [[html.unescape(c) for c in row] for row in cells]
    return found


def test_both_halves_on_one_page(runs, imagenet, mnist, tmp_path, capsys):
    out = tmp_path / "new" / "both"
    both.main(["--imagenet", str(runs[0]), "--mnist", str(runs[1]), "--out", str(out)])
    assert (out / "report.html").as_uri() in capsys.readouterr().out
    text = (out / "report.html").read_text()
    assert "<h1>Etmann 2019 on ImageNet sample and MNIST</h1>" in text
    assert headings(text) == [
        "The paper's claims",
        "Every model: ImageNet sample",
        "Every model: MNIST",
        *(f"Figure {number}" for number in range(2, 11)),
        "Settings and versions",
    ]
    lead = html.unescape(re.search("</h1>\n<p>(.*?)</p>", text, re.DOTALL)[1])
    assert lead == f"ImageNet sample: {imagenet.lead} MNIST: {mnist.lead}"
    assert text.count("<img") == 9
    for number in range(2, 11):
        path = out / "figures" / f"figure{number}.png"
        assert base64.b64encode(path.read_bytes()).decode() in text
    assert text.count("Left: ImageNet sample; right: MNIST.") == 7
    assert re.findall(r'(?:src|href)="(?!data:)', text) == []

    found = tables(text)
    for cohort in (imagenet, mnist):
        head, *rows = found[f"Every model: {cohort.name}"]
        assert [row[0] for row in rows] == [f"{each.weight:,.10g}" for each in cohort.members]
        for row, member in zip(rows, cohort.members, strict=True):
            shown_robustness = float(row[head.index("ρ~")])
            expected = member.alignment["linearized_robustness"].median()
            assert shown_robustness == pytest.approx(expected, rel=1e-3)
    judged = found["The paper's claims"][1:]
    statements = [row[0] for row in judged]
    assert [each.split(": ")[0] for each in statements] == ["ImageNet sample"] * 10 + ["MNIST"] * 10
    for half, cohort, saturates in (
        (judged[:10], imagenet, False),
        (judged[10:], mnist, True),
    ):
        for row, claim in zip(half, claims.judge(cohort.members, saturates=saturates), strict=True):
            expected = [claim.statement, claim.verdict, claim.figure, claim.source]
            assert [row[0].split(": ", 1)[1], *row[1:]] == expected
    assert sum("saturates" in each for each in statements) == 1
    assert sum("keeps growing" in each for each in statements) == 1
    settings = {row[0]: re.sub("<.*?>", "", row[1]) for row in found["Settings and versions"]}
    assert settings["ImageNet sample: seed"] == "1"
    assert settings["MNIST: seed"] == "0"
    assert settings["ImageNet sample: keras"] == "3.1"
    assert settings["MNIST: started"] == mnist.record["started"]


def refused(imagenet, mnist, out):
    arguments = ["--imagenet", str(imagenet), "--mnist", str(mnist), "--out", str(out)]
    with pytest.raises(SystemExit) as stop:
        run(lambda: both.main(arguments))
    assert not (out / "report.html").exists()
    return str(stop.value)


def test_runs_the_wrong_way_round(runs, tmp_path):
    left, right = runs
    said = refused(right, left, tmp_path / "out")
    assert said == (
        f"error: the two runs are the wrong way round: {right} is on MNIST, {left} on ImageNet "
        "sample. Swap --imagenet and --mnist."
    )
    said = refused(left, left, tmp_path / "out")
    assert said == f"error: {left} is a run on ImageNet sample: give --mnist one on MNIST or digits"
    said = refused(right, right, tmp_path / "out")
    assert said == f"error: {right} is a run on MNIST: give --imagenet one on ImageNet"


def test_a_folder_that_is_no_run(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "none"):
        assert refused(folder, runs[1], tmp_path / "out").startswith(
            f"error: {folder} holds no run"
        )


def test_an_unfinished_run(runs, mnist, tmp_path):
    folder = written(tmp_path / "half", mnist)
    (folder / "models" / "lambda-1000" / "summary.json").unlink()
    said = refused(runs[0], folder, tmp_path / "out")
    assert said.startswith(f"error: the run in {folder} is not finished")
    assert "lambda 1000" in said and "resumed where it stopped" in said


@pytest.mark.parametrize(
    "name",
    [
        "run.json",
        "cohort.json",
        "pictures.npz",
        *(
            f"models/lambda-1000/{name}"
            for name in (
                "summary.json",
                "alignment.parquet",
                "attack-gradient.parquet",
                "gradients.npz",
            )
        ),
    ],
)
def test_a_damaged_file_is_named(runs, mnist, tmp_path, name):
    folder = written(tmp_path / "damaged", mnist)
    path = folder / name
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damages = [b"", whole[:-9], b"{}", b"[1]", rng.bytes(300)]
    for damaged in damages:
        path.write_bytes(damaged)
        said = refused(runs[0], folder, tmp_path / "out")
        assert said.startswith(f"error: {path} ")
        assert "cannot be read" in said or "unknown settings" in said


def test_a_table_of_another_run_is_refused(runs, mnist, tmp_path):
    folder = written(tmp_path / "mixed", mnist)
    other = dataclasses.replace(mnist, record={**mnist.record, "settings": {"seed": 9}})
    strange = written(tmp_path / "strange", other)
    name = "models/lambda-1000/attack-gradient.parquet"
    (folder / name).write_bytes((strange / name).read_bytes())
    said = refused(runs[0], folder, tmp_path / "out")
    assert said.startswith(f"error: {folder / name} is the result of other settings")


def test_the_page_of_a_run_is_not_overwritten(runs):
    before = sorted(path.name for path in runs[1].iterdir())
    said = refused(*runs, runs[1])
    assert said == (
        f"error: {runs[1]} holds a run, whose page would be lost: give --out another folder"
    )
    assert sorted(path.name for path in runs[1].iterdir()) == before


def test_an_unwritable_folder(runs, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write to the folder" in refused(*runs, tmp_path / "file" / "out")


def test_a_missing_argument(capsys):
    assert "--mnist" in usage_error(both.main, ["--imagenet", "somewhere"], capsys)


@dataclasses.dataclass(frozen=True)
class Settings:
    seed: int = 0


@pytest.mark.parametrize("name", ["MNIST", pytest.param("ImageNet", marks=pytest.mark.slow)])
def test_the_page_of_one_cohort(tmp_path, name):
    cohort = made_up(name, accuracy=0.2)
    saturates = name == "MNIST"
    (tmp_path / "run.json").write_text(json.dumps({**cohort.record, "settings": {"seed": 0}}))
    content = page.report_on(cohort, saturates=saturates)
    path = write_page(Run(tmp_path, Settings()), "demo", content, Progress((), (), ()))
    assert path == tmp_path / "report.html"
    text = path.read_text()
    assert f"<h1>Etmann 2019 on {name}</h1>" in text
    lead = html.unescape(re.search("</h1>\n<p>(.*?)</p>", text, re.DOTALL)[1])
    assert lead.startswith(cohort.lead)
    assert "penalty is N² smaller than the printed one" in lead
    assert lead.endswith("guessing): λ = 10; λ = 100; λ = 1,000; λ = 10,000.")
    drawn = [each for each in headings(text) if each.startswith("Figure")]
    assert drawn == [f"Figure {k}" for k in ([3] if saturates else [2]) + list(range(4, 11))]
    found = tables(text)
    settings = {row[0]: re.sub("<.*?>", "", row[1]) for row in found["Settings and versions"]}
    assert settings["preset"] == "demo"
    assert settings["python"] == "3.11"
    csv = pd.read_csv(tmp_path / "models.csv")
    assert list(csv.columns) == found["Every model"][0]
    np.testing.assert_allclose(
        csv["Carlini-Wagner l2"],
        [member.summary["median_carlini_wagner"] for member in cohort.members],
    )
    judged = json.loads((tmp_path / "claims.json").read_text())
    assert [each["statement"] for each in judged] == [
        row[0] for row in found["The paper's claims"][1:]
    ]
    assert any("saturates" in each["statement"] for each in judged) == saturates
