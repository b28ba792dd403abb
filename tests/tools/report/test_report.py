import json
import re
import shlex
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest

from tests.support.handmade_study import (
    COMMAND,
    TIMES,
    change_arrays,
    change_row,
    read_json,
    write_json,
    write_latency,
    write_study,
)
from tools.report.__main__ import main
from tools.report.write import write_study_report

LOADING = {"src", "srcset", "poster", "background", "data", "action", "formaction"}
VOID = {"meta", "br", "img", "rect", "polyline", "polygon"}


class Page(HTMLParser):
    """What a page is made of: tags with their attributes, cells of tables by row, whether tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self.open, self.cell = [], [], [], None
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.cell = ""
        if tag in ("br", "small") and self.cell is not None:
            self.cell += " "

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.rows[-1].append(self.cell)
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def markdown_rows(text):
    rows = []
    for line in text.splitlines():
        if line.startswith("| "):
            cells = [cell.strip().replace("<br>", " ") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            cells = [re.sub(r"(?<!\\)\[(.*?)(?<!\\)\]\(.*?\)", r"\1", cell) for cell in cells]
            rows.append([re.sub(r"\\(.)", r"\1", cell) for cell in cells if cell])
    return rows


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = write_study(tmp_path_factory.mktemp("report") / "study", images=120, unseen=40)
    assert main([str(folder), "--resamples", "20"]) == 0
    return folder


def test_copies_in_training_are_counted(report):
    text = (report / "report.md").read_text()
    assert re.search(r"80 of them \(66\.7 %\)\S* have a copy in training, .* a high figure on it proves little", text)


@pytest.fixture(scope="module")
def page(report):
    return Page((report / "report.html").read_text())


def test_exactly_these_files_are_written(report):
    made = {path.relative_to(report).as_posix() for path in report.rglob("*") if path.is_file()}
    done = [row["id"] for row in read_json(report)["rows"] if row["status"] == "done"]
    figures = {f"figures/reliability_{name}.png" for name in done} | {"figures/pipeline.svg"}
    figures |= {f"figures/pareto_{name}.png" for name in ("bytes", "litert", "onnxruntime")}
    assert {name for name in made if name.startswith("figures/")} == figures
    assert {name for name in made if name.startswith("report.")} == {"report.html", "report.md", "report.json"}
    assert all((report / name).stat().st_size < 5_000_000 for name in made)


def test_the_page_loads_nothing(report, page):
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base"}
        for name in LOADING & attributes.keys():
            assert attributes[name].startswith("data:image/png;base64,")
    text = (report / "report.html").read_text()
    style = re.search("<style>(.*?)</style>", text, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style


def test_every_link_leads_somewhere(report, page):
    anchors = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = {attributes["href"] for attributes in page.all("a")}
    assert {link for link in links if "://" in link} == {
        "https://doi.org/10.1002/sim.6148", "https://arxiv.org/abs/2006.16736", "https://arxiv.org/abs/1610.02391",
    }  # fmt: skip
    local = {link for link in links if "://" not in link}
    assert all(link[1:] in anchors for link in local if link.startswith("#"))
    files = {unquote(link) for link in local if not link.startswith("#")}
    assert all((report / name).is_file() for name in files)
    assert {"study.json", "report.json", "predictions/mobilenetv2_fp16.npz", "latency/mobilenetv2_fp16.json"} <= files
    assert {"runs/model_int8.tflite", "runs/parity.json", "sources/config.yaml"} <= files
    text = (report / "report.md").read_text()
    assert {unquote(link) for link in re.findall(r"(?<!!)\[[^]]*\]\(([^)#:]*)\)", text)} == files
    assert all((report / name).is_file() for name in re.findall(r"!\[[^]]*\]\(([^)]*)\)", text))


def test_the_twins_hold_the_same_tables(report, page):
    html = [[cell for cell in row if cell] for row in page.rows]
    markdown = markdown_rows((report / "report.md").read_text())
    assert len(html) == len(markdown) > 60
    assert html == markdown


def test_tables_and_pictures_can_be_heard(page):
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) == 7 + 8
    assert all(len(attributes["alt"]) > 20 for attributes in page.all("img"))
    assert [len(attributes["aria-label"]) > 20 for attributes in page.all("svg")] == [True, True]
    assert page.all("html")[0]["lang"] == "en"
    levels = [tag for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels == ["h1"] + ["h2"] * 12


def test_numbers_are_those_of_the_artefacts(report, page):
    saved = json.loads((report / "report.json").read_text())["rows"]["mobilenetv2_int8_ptq"]
    rows = [row for row in page.rows if row and row[0] == "PTQ INT8 MobileNetV2"]
    short, accuracy, classes, cost, fidelity, verdict, errors = rows
    low, high = saved["testing"]["intervals"]["accuracy"]
    assert accuracy[1] == f"{100 * saved['testing']['accuracy']:.2f} % {100 * low:.2f} to {100 * high:.2f}"
    assert short[1:3] == [cell.split(" %")[0] + " %" for cell in accuracy[1:3]]
    assert short[4:] == ["2.70", saved["against"]["verdict"]]
    assert accuracy[2].endswith("n = 40")
    assert accuracy[3].endswith("n = 60")
    assert classes[1].startswith(f"{saved['testing']['per_class']['glioma']['f1']:.4f} ")
    # 2700 of 8800 and of 26700 bytes; 2700 / 1000 and 2700 / 800 ms
    assert cost[1:4] == ["2,700 0.00 MB", "0.307", "0.101 of 0.03 MB"]
    assert cost[4:] == ["2.70 / 3.38 1 thread 100 calls"] * 2
    comparison = saved["against"]["comparison"]
    assert fidelity[1] == f"{100 * comparison['agreement']:.2f} %"
    lost, gained = comparison["only_a_right"], comparison["only_b_right"]
    assert fidelity[2] == f"{len(comparison['flips'])} {lost} lost {gained} gained"
    assert fidelity[5] == "passed"
    assert verdict[1] == saved["against"]["verdict"]
    assert verdict[2].endswith(saved["against"]["non_inferiority"]["all classes"]["verdict"])
    overlap = saved["against"]["errors"]["all classes"]
    assert errors[1].startswith(f"{overlap['both']} of {overlap['errors_a'] + overlap['errors_b'] - overlap['both']} ")


def test_the_paper_stands_beside_and_nothing_is_made_up_for_it(page):
    paper = [row for row in page.rows if row and row[0].endswith("the paper, MobileNetV2")]
    assert [row[1] for row in paper[:2]] == ["82.20 % its own split", "82.37 % its own split"]
    f1 = ["not given here", "about 0.73 its own split", *["0.86 to 0.89 its own split"] * 2]
    assert [row[1:] for row in paper[2:4]] == [f1] * 2
    # 5.76 of 35.34 MB, and of a third of it: the Keras file holds the weights and two Adam slots
    assert paper[5][1:4] == ["5.76 MB", "0.49 of its fp32 weights, a third of the file", "0.163 of 35.34 MB"]


def test_the_paper_has_nothing_to_say_of_other_classes_and_images_without_copies_are_no_weak_test(tmp_path):
    folder = write_study(tmp_path / "study", images=120, unseen=120, names=("mobilenetv2_float", "mobilenetv2_fp16"))
    write_json(folder, read_json(folder) | {"classes": ["HGG", "Healthy", "LGG", "no one's"]})
    assert main([str(folder), "--resamples", "10"]) == 0
    rows = Page((folder / "report.html").read_text()).rows
    assert ["model", "HGG", "Healthy", "LGG", "no one's"] in rows
    assert not [row for row in rows if row and row[0].endswith("the paper, MobileNetV2")]
    text = (folder / "report.md").read_text()
    assert "none of them has a copy in training, mirrored, turned or cropped, though perhaps of the same" in text
    assert "proves little" not in text


def test_what_was_not_done_says_so_with_reason_and_command(report, page):
    for text in ((report / "report.html").read_text(), (report / "report.md").read_text()):
        assert "NOT DONE: DenseNet-32 W4A8" in text
        assert COMMAND in text
        assert re.search(r"the study has no model\\?_fp32.tflite of DenseNet-32", text)
        assert "python -m export runs/densenet-32 --recipes fp32" in text
    rows = [row for row in page.rows if row and row[0].startswith("W4A8 DenseNet-32")]
    assert rows == [["W4A8 DenseNet-32", "NOT DONE: rounding was stopped after 60 minutes"]] * 7
    assert [row[2] for row in page.rows if row[0] == "INT8 DenseNet-32"][3] == "NOT DONE"


def test_a_column_that_no_row_has_is_left_out_and_said_once(tmp_path):
    names = ("mobilenetv2_float", "mobilenetv2_fp16")
    folder = write_study(tmp_path / "study", 40, 8, names)
    for name in names:
        change_row(folder, name, checkpoint_bytes=None)
        change_arrays(folder, name, val_unseen=[True] * 19 + [False])
    write_study_report(folder, 10)
    text = (folder / "report.md").read_text()
    assert "| grouped validation |" not in text
    assert "of the training checkpoint" not in text
    for what in ("grouped validation", "checkpoint"):
        (gap,) = [line for line in text.splitlines() if f": {what}. Reason" in line]
        assert gap.startswith(f"NOT DONE: MobileNetV2 float, PyTorch, MobileNetV2 Float16: {what}. Reason")


def test_every_flip_is_listed(report):
    text = (report / "report.md").read_text()
    rows = json.loads((report / "report.json").read_text())["rows"]
    flips = rows["mobilenetv2_int8_ptq"]["against"]["comparison"]["flips"]
    part = text.split('<details id="flips-mobilenetv2_int8_ptq">')[1].split("</details>")[0]
    assert part.count("\n- ") == len(flips) > 0
    assert f"{flips[0]['before']} to {flips[0]['after']} (label {flips[0]['label']})" in part


def test_lesser_studies_say_not_done_instead_of_failing(tmp_path):
    """No Grad-CAM, no time, no parity, no checkpoint, a split that was not grouped, files that were not kept."""
    kept = [f"mobilenetv2_{name}" for name in ("float", "fp16", "int8_ptq", "int8_qat")]
    folder = write_study(tmp_path / "a study", 40, 8, [*kept, "densenet32_float", "densenet32_int8"])
    data = read_json(folder)["data"] | {"nearest_neighbour": {"all": None, "unseen": None}, "majority": None}
    data["differences"] = ["densenet101: size 128 instead of 224"]
    write_json(folder, read_json(folder) | {"gradcam": None, "data": data})
    write_latency(folder, "mobilenetv2_int8_qat", {"median_ms": 1.0, "p90_ms": 2.0} | TIMES)
    omitted = [{"what": "latency", "reason": "the machine was busy", "command": "python -m tools.bench X"}]
    change_row(folder, "mobilenetv2_fp16", latency=None, omitted=omitted)
    change_row(folder, "mobilenetv2_int8_ptq", parity=None, checkpoint_bytes=None, latency=None)
    change_arrays(folder, "mobilenetv2_int8_qat", val_unseen=[True] * 19 + [False])
    (folder / "runs/qat_int8.tflite").unlink()
    change_row(folder, "densenet32_float", status="not done", reason="no time")
    write_study_report(folder, 10)
    text = (folder / "report.md").read_text().replace("\\", "")
    for said in (
        "NOT DONE: Grad-CAM. Reason: the study has no picture of it. Command: `python -m tools.gradcam runs/mobilenet",
        "MobileNetV2 Float16: latency. Reason: the machine was busy. Command: `python -m tools.bench X`",
        "MobileNetV2 PTQ INT8: latency. Reason: the study folder has no time of it",
        "MobileNetV2 PTQ INT8: parity. Reason",
        "pixels is right on [NOT DONE](study.json) of all",
        "NOT DONE: nearest-neighbour and majority baselines. Reason: no run of the study has a leak check",
        "Not handled alike: densenet101: size 128 instead of 224.",
        "Times were taken on: AMD, 2 cores, load 8.2.",
        "MobileNetV2 QAT INT8: latency in ONNX Runtime. Reason",
        "MobileNetV2 PTQ INT8: checkpoint. Reason: the run keeps no training checkpoint with its optimizer",
        "MobileNetV2 QAT INT8: grouped validation. Reason: its split was not grouped: 1 of 20 validation images have a",
        "DenseNet-32 INT8: comparison with the float model. Reason: DenseNet-32 float, PyTorch was not done",
        "runs/qat_int8.tflite (not kept beside this report)",
    ):
        assert said in text
    assert text.count("MobileNetV2 Float16: latency") == 1
    commands = [shlex.split(command) for command in re.findall(r"Command: `(python -m tools\.gradcam.*?)`", text)]
    assert [command[-1] for command in commands] == [str(folder / "gradcam.png")]


def test_names_that_mean_something_in_html_or_markdown_stay_names(tmp_path):
    name, file, command = "<b>a_b*|c</b>", "runs/a b/ü<.tflite", "python -m x | y_z"
    folder = write_study(tmp_path / "study", 24, 8, ["mobilenetv2_float", "mobilenetv2_fp16"])
    (folder / "runs/a b").mkdir()
    (folder / file).write_bytes(bytes(4400))
    change_row(folder, "mobilenetv2_fp16", recipe=name, file=file, commands=[command], onnx_twin=None)
    write_json(folder, read_json(folder) | {"title": name})
    write_study_report(folder, 10)
    html, markdown = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert "<b>" not in html
    assert "<title>&lt;b&gt;a_b*|c&lt;/b&gt;</title>" in html
    assert 'href="runs/a%20b/%C3%BC%3C.tflite"' in html
    assert f"<code>{command}</code>" in html
    assert Page(html).rows[2][0] == f"{name} MobileNetV2"
    assert markdown.startswith("# \\<b\\>a\\_b\\*\\|c\\</b\\>\n")
    assert "](runs/a%20b/%C3%BC%3C.tflite)" in markdown
    assert "`python -m x \\| y_z`" in markdown
    assert markdown_rows(markdown)[2][0] == f"{name} MobileNetV2"


def test_the_same_study_gives_the_same_bytes(tmp_path):
    made = []
    for name in ("a", "b"):
        folder = write_study(tmp_path / name / "study", 24, 8, ["mobilenetv2_float", "mobilenetv2_int8_ptq"])
        write_study_report(folder, 10)
        paths = [folder / "report.html", folder / "report.md", folder / "report.json"]
        made.append([path.read_bytes() for path in paths])
    assert made[0] == made[1]


def test_sources_are_told_apart_where_the_answers_name_them(tmp_path):
    """An average hides a hospital: one source's answers are all right, the other's all wrong."""
    folder = write_study(tmp_path / "study", images=120, unseen=40, names=("mobilenetv2_float",))
    labels = np.load(folder / "predictions/mobilenetv2_float.npz")["labels"]
    bad = np.arange(120) % 3 == 0
    logits = np.eye(4, dtype=np.float32)[np.where(bad, (labels + 1) % 4, labels)]
    change_arrays(folder, "mobilenetv2_float", logits=logits, sources=np.where(bad, "south", "north"))
    assert main([str(folder), "--resamples", "10"]) == 0
    found = json.loads((folder / "report.json").read_text())["rows"]["mobilenetv2_float"]["sources"]
    assert list(found) == ["testing"]
    assert found["testing"]["worst_source"]["name"] == "south"
    rows = Page((folder / "report.html").read_text()).rows
    head = next(row for row in rows if row[1:] == ["worst", "north", "south"])
    (values,) = [row for row in rows[rows.index(head) + 1 :] if row[1:2] == ["south"]]
    assert [value.split()[0] for value in values[2:]] == ["100.00", "0.00"]


def test_what_compression_changes_on_other_sources_stands_beside(tmp_path):
    """Of one source an answer is lost and one gained, of the other nothing changes; the verdict counts both."""
    folder = write_study(tmp_path / "study", images=120, unseen=40, names=("mobilenetv2_float", "mobilenetv2_int8_ptq"))
    labels, sources = np.array([0, 1, 2, 3, 0, 1]), np.array(["north"] * 3 + ["south"] * 3)
    for name, answers in (("mobilenetv2_float", [0, 1, 3, 3, 0, 1]), ("mobilenetv2_int8_ptq", [0, 2, 2, 3, 0, 1])):
        found = {"logits": np.eye(4, dtype=np.float32)[answers], "labels": labels, "sources": sources}
        change_arrays(folder, name, **{f"elsewhere_{what}": values for what, values in found.items()})
    assert main([str(folder), "--resamples", "10"]) == 0
    row = json.loads((folder / "report.json").read_text())["rows"]["mobilenetv2_int8_ptq"]
    north, south = (row["against"]["elsewhere"][name] for name in ("north", "south"))
    assert (north["flips"], north["lost"], north["gained"], south["flips"]) == (2, 1, 1, 0)
    assert row["against"]["non_inferiority"]["other sources"]["n"] == 6
    assert row["against"]["verdict"] == "inconclusive"  # six images are too few
    rows = Page((folder / "report.html").read_text()).rows
    assert [row[1:] for row in rows[rows.index(["model", "north", "south"]) + 1 :][:2]] == [
        ["reference", "-"],
        ["2 flips 1 lost, 1 gained p 1.000", "0 flips 0 lost, 0 gained p 1.000"],
    ]


@pytest.mark.parametrize(("source", "first"), [("south", 0), ("north", 1)])
def test_rows_measured_on_other_images_from_elsewhere_are_refused(source, first, tmp_path, ended):
    folder = write_study(tmp_path / "study", images=24, unseen=8, names=("mobilenetv2_float", "mobilenetv2_int8_ptq"))
    for name, place, start in (("mobilenetv2_float", "north", 0), ("mobilenetv2_int8_ptq", source, first)):
        labels = np.roll(np.arange(4), start)
        found = {"logits": np.eye(4, dtype=np.float32), "labels": labels, "sources": np.array([place] * 4)}
        change_arrays(folder, name, **{f"elsewhere_{what}": values for what, values in found.items()})
    assert "other images from elsewhere" in ended(main([str(folder)]), 2).err
    assert not list(folder.glob("report.*"))
