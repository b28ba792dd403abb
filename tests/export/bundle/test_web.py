"""The bundle's browser page: its JavaScript sees the pixels that Python sees, and gives Python's answers."""

import hashlib
import json
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brainq_torch.abstention.outlier import fit_typicality
from brainq_torch.abstention.policy import fit_abstention
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.data.reading.grey import UnreadableImageError
from brainq_torch.data.reading.image import read_grey
from brainq_torch.data.synthesis.phantom import phantom_images, render_phantom
from brainq_torch.run import load_run
from brainq_torch.run_files import PARITY
from brainq_torch.series.answer import answer_series
from brainq_torch.series.find import find_series
from export.__main__ import main as export_main
from export.bundle.answers import GOLDEN, BundledModel, BundleError
from export.bundle.build import make_bundle
from export.bundle.predict import SUMS, main
from export.bundle.web import FILES, PACKAGE, VERSIONS
from tests.export.bundle.conftest import PAGE, with_page
from tests.export.bundle.test_build import change_a_byte, changed, files, sign_again
from tests.support.pictures import png_chunk, write_png

SPECS = [PixelSpec(224), PixelSpec(224, "pad"), PixelSpec(224, "head"), PixelSpec(33, "pad"), PixelSpec(160, "head")]
CLASSES = ["a", "b", "c", "d"]
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def read_in_node(folder, paths, **more):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed; the page's pixels are then tested in Chromium alone")
    job = {"page": str(PAGE), "paths": [str(path) for path in paths], "specs": [spec.to_json() for spec in SPECS]}
    (folder / "job.json").write_text(json.dumps(job | more))
    command = [node, "tests/support/page_pixels.mjs", str(folder / "job.json")]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def read_in_python(path):
    try:
        grey = read_grey(path)
    except UnreadableImageError:
        return {"error": True}
    specs = [(hash_of(pixels), list(notes)) for pixels, notes in (spec.apply_with_notes(grey.pixels) for spec in SPECS)]
    notes = [list(grey.pixels.shape), hash_of(grey.pixels), list(grey.notes)]
    return dict(zip(("shape", "sha256", "notes"), notes, strict=True)) | {
        "specs": [{"sha256": digest, "notes": found} for digest, found in specs]
    }


def hash_of(pixels):
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def interlaced_rows(random, width, height, bits):
    rows = b""
    for left, top, step_x, step_y in ADAM7:
        columns, lines = max(0, -(-(width - left) // step_x)), max(0, -(-(height - top) // step_y))
        for _ in range(lines if columns else 0):
            rows += bytes([random.integers(0, 5)]) + random.bytes(-(-columns * bits // 8))
    return rows


def with_bar(inside):
    """A disc in the middle of a black frame, and a bar of all greys at its edge."""
    away = np.square(np.arange(240) - 120)
    frame = np.where(np.add.outer(away, away) < 60**2, inside, 0).astype(np.uint8)
    frame[:, :20] = np.arange(240, dtype=np.uint8)[:, None]
    return frame


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """PNG files of every kind, by name."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    sizes = [(1, 1), (31, 700), (100, 37), (224, 224), (513, 511), (900, 33), (40, 600), (64, 64), (448, 448)]
    images = {f"noise_{h}_{w}": Image.fromarray(random.integers(0, 256, (h, w)).astype(np.uint8)) for h, w in sizes}
    for label in range(4):
        for side in (64, 224, 517):
            phantom = np.pad(render_phantom(label, side, seed=side, size=side), ((11 * label, 30), (side // 4, 17)))
            images[f"phantom_{label}_{side}"] = Image.fromarray(phantom)
    colours = random.integers(0, 256, (60, 50, 4)).astype(np.uint8)
    rgb, grey = Image.fromarray(colours[..., :3]), colours[..., 0].copy()
    opaque = colours.copy()
    opaque[..., 3] = 255
    images |= {
        "rgb": rgb, "rgba": Image.fromarray(colours), "opaque": Image.fromarray(opaque),
        "grey_alpha": Image.fromarray(colours[..., :2].copy(), "LA"), "one_bit": Image.fromarray(grey > 99),
        "grey_16": Image.fromarray(grey.astype(np.uint16) * 211 + 7),
        "flat_16": Image.fromarray(np.full((40, 40), 500, np.uint16)),
        "faint": Image.fromarray(np.stack([grey // 8, grey // 8 + 9, grey // 8], -1)),
        **{f"levels_{count}": Image.fromarray(grey % count * 16) for count in (15, 16)},
        "mask": Image.fromarray(with_bar(180)),
        "head": Image.fromarray(with_bar(random.integers(180, 200, (240, 240)))),
        **{f"palette_{count}": rgb.quantize(count) for count in (2, 4, 9, 200)},
    }  # fmt: skip
    for name, image in images.items():
        image.save(folder / f"{name}.png")
    clear = {"index": 3, "bytes": bytes(range(0, 200, 10)), "none": b"\xff" * 20}
    for name, transparency in clear.items():
        rgb.quantize(20).save(folder / f"palette_clear_{name}.png", transparency=transparency)
    Image.fromarray(grey).save(folder / "grey_clear.png", transparency=17)
    Image.fromarray(colours[..., :3] // 128 * 255).save(folder / "rgb_clear.png", transparency=(255, 0, 255))
    for depth, colour, channels in ((2, 0, 1), (4, 0, 1), (16, 2, 3), (16, 4, 2), (16, 6, 4)):
        row = -(-37 * depth * channels // 8)
        rows = b"".join(bytes([line % 5]) + random.bytes(row) for line in range(21))
        write_png(folder / f"bits_{depth}_{colour}.png", 37, 21, depth, colour, zlib.compress(rows))
    twelve = np.repeat(random.integers(0, 4096, (21, 37, 1)), 3, 2).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in twelve)
    write_png(folder / "bits_12.png", 37, 21, 16, 2, zlib.compress(rows))
    for width, height in ((37, 21), (3, 2)):
        for depth, colour, channels in ((8, 2, 3), (4, 0, 1), (16, 0, 1)):
            rows = zlib.compress(interlaced_rows(random, width, height, depth * channels))
            path = folder / f"interlaced_{width}_{depth}_{colour}.png"
            write_png(path, width, height, depth, colour, rows, interlaced=1)
    gamma, rows = png_chunk(b"gAMA", struct.pack(">I", 100000)), zlib.compress((b"\0" + random.bytes(111)) * 21)
    write_png(folder / "gamma.png", 37, 21, 8, 2, rows, extra=gamma)
    return folder


def test_the_page_sees_what_python_sees(pictures, tmp_path):
    paths = sorted(pictures.glob("*.png"))
    assert len(paths) == 55
    found = read_in_node(tmp_path, paths)
    expected = {path.stem: read_in_python(path) for path in paths}
    blank = {name for name, answer in expected.items() if "error" in answer}
    assert {"noise_1_1", "flat_16", "one_bit", "palette_2", "bits_2_0", "mask", "levels_15"} <= blank
    assert not blank & {"phantom_0_64", "grey_16", "palette_200", "levels_16", "head"}
    assert {path.stem: found[str(path)] for path in paths if path.stem not in blank} == {
        name: answer for name, answer in expected.items() if name not in blank
    }
    assert all("fewer than 16 grey levels" in found[str(path)]["error"] for path in paths if path.stem in blank)


def test_what_python_refuses_the_page_refuses(pictures, tmp_path):
    content = (pictures / "rgb.png").read_bytes()
    files = {
        "cut": content[:500], "empty": b"", "text": b"hello", "jpeg": b"\xff\xd8\xff\xe0\0\x10JFIF",
        "no_end": content[:-12], "gigantic": content[:16] + struct.pack(">II", 40_000, 40_000) + content[24:],
    }  # fmt: skip
    for name, some in files.items():
        (tmp_path / f"{name}.png").write_bytes(some)
    write_png(tmp_path / "bomb.png", 30_000, 30_000, 8, 0, zlib.compress(b""))
    write_png(tmp_path / "short.png", 37, 21, 8, 2, zlib.compress(b"\0" * 50))
    Image.open(pictures / "rgb.png").save(
        tmp_path / "frames.png", save_all=True, append_images=[Image.new("RGB", (60, 50))]
    )
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.open(pictures / "rgb.png").save(
        tmp_path / "turned.png", exif=turned
    )  # Python reads it, the page says it cannot
    paths = sorted(tmp_path.glob("*.png"))
    found = read_in_node(tmp_path, paths)
    reasons = {path.stem: found[str(path)]["error"] for path in paths}
    assert "40000000" not in reasons["bomb"]
    assert "gigantic dimensions, 30000 x 30000 pixels; resize it to at most 40 megapixels" in reasons["bomb"]
    assert "several frames" in reasons["frames"]
    assert "use predict.py" in reasons["turned"]
    assert "zero bytes" in reasons["empty"]
    assert all("error" in read_in_python(path) for path in paths if path.stem != "turned")


@pytest.mark.parametrize("name", ["phantom_0_64", "grey_16", "palette_200"])
def test_of_a_flipped_bit_the_page_thinks_as_python_does(pictures, tmp_path, name):
    whole = (pictures / f"{name}.png").read_bytes()
    for number, bit in enumerate(np.random.default_rng(0).integers(0, 8 * len(whole), 100)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / f"{number}.png").write_bytes(damaged)
    found = read_in_node(tmp_path, sorted(tmp_path.glob("*.png")))
    assert all("error" in answer for answer in found.values())
    assert all("error" in read_in_python(path) for path in found)


def test_the_page_reads_the_checksum_behind_the_pixels(tmp_path):
    rows = zlib.compress((b"\0" + bytes(range(40))) * 40)
    for name, end in {"good": rows[-4:], "wrong": b"\0\0\0\0", "missing": b""}.items():
        write_png(tmp_path / f"{name}.png", 40, 40, 8, 0, rows[:-4], end)
    found = read_in_node(tmp_path, sorted(tmp_path.glob("*.png")))
    assert {Path(path).stem for path, answer in found.items() if "error" in answer} == {"wrong", "missing"}
    assert {Path(path).stem for path in found if "error" in read_in_python(path)} == {"wrong", "missing"}


def test_the_page_abstains_as_python_does(pictures, tmp_path):
    images, labels = phantom_images(8, 224)[:2]
    random = np.random.default_rng(0)
    logits = random.normal(0, 1, (len(images), 4)) + 4 * np.eye(4)[labels]
    abstention = fit_abstention(logits, labels, images, fit_typicality(images))
    answer = [1.5, 0.25, -0.5, 0.75]
    paths = [path for path in sorted(pictures.glob("*.png")) if min(Image.open(path).size) > 30]
    paths = [path for path in paths if "error" not in read_in_python(path)]
    more = {"abstention": abstention.to_json(), "logits": answer, "classes": CLASSES}
    found = read_in_node(tmp_path, paths, **more)
    reasons = set()
    for path in paths:
        pixels = np.stack([SPECS[0].apply(read_grey(path).pixels)])
        expected = abstention.judge(np.array([answer]), pixels)
        judged = found[str(path)]["specs"][0]["judged"]
        assert judged["outlier"] == pytest.approx(float(expected.outlier[0]), rel=1e-9)
        assert list(judged["probabilities"].values()) == pytest.approx(expected.probabilities[0].tolist(), rel=1e-12)
        assert judged["abstained"] == expected.reason(0)
        assert judged["class"] == ("uncertain" if expected.reason(0) else "a")
        reasons.add(expected.reason(0))
    assert "unlike the images it was trained on" in reasons


@pytest.fixture
def stub(tmp_path):
    """The npm packages, with stubs in place of their files."""
    folder = tmp_path / "stub"
    for name, version in VERSIONS.items():
        package = folder if name == PACKAGE else folder.parent / name
        for file in FILES[name]:
            (package / file).parent.mkdir(parents=True, exist_ok=True)
            (package / file).write_bytes(b"")
        (package / "package.json").write_text(json.dumps({"name": name, "version": version}))
    return folder


def test_a_bundle_with_a_page_is_whole_and_made_twice_the_same(tiny_run, tiny_export, tmp_path, stub, ended):
    words = [str(tiny_run), "--out", str(tiny_export), "--page", str(stub), "--bundle"]
    assert export_main([*words, str(tmp_path / "one")]) == 0
    said = ended(export_main([*words, str(tmp_path / "a clinic")])).out
    assert f"python '{tmp_path}/a clinic/predict.py' --verify replays it" in said
    assert f"\nbrowser page: python '{tmp_path}/a clinic/predict.py' --page\n" in said
    assert export_main([*words, str(tmp_path / "two")]) == 0
    one = files(tmp_path / "one")
    assert one == files(tmp_path / "two")
    ours = {path.name for path in PAGE.iterdir()} - {"index.html", "ONNXRUNTIME_LICENSE", "CODECS_LICENSE"}
    runtime = {"LICENSE", "codecs.LICENSE"} | {place for places in FILES.values() for place in places.values()}
    wanted = {"index.html", "model_fp32.onnx"} | {f"page/{name}" for name in ours}
    wanted |= {f"page/runtime/{name}" for name in runtime}
    assert wanted == {name for name in one if name.startswith(("index", "page/")) or name.endswith(".onnx")}
    assert wanted <= {line.split("  ")[1] for line in one[SUMS].decode().splitlines()}
    page = json.loads(one["bundle.json"])["page"]
    assert (page["file"], page["matches"], page["logit_scale"]) == ("model_fp32.onnx", "model_fp16.tflite", None)
    assert main(["--verify"], tmp_path / "one") == 0
    (tmp_path / "one" / "page" / "app.js").write_text("")
    assert "page/app.js has changed" in ended(main(["--verify"], tmp_path / "one"), 2).err


def test_other_runtimes_and_files_that_failed_are_refused(tiny_run, tiny_export, tmp_path, stub):
    run, exported = load_run(tiny_run), shutil.copytree(tiny_export, tmp_path / "export")
    with pytest.raises(BundleError, match="is no npm package"):
        make_bundle(run, exported, tmp_path / "b", page_runtime=tmp_path)
    (stub / "package.json").write_text(json.dumps({"name": PACKAGE, "version": "1.2.3"}))
    with pytest.raises(BundleError, match=rf"is {PACKAGE} 1\.2\.3; .* is needed: npm install"):
        make_bundle(run, exported, tmp_path / "b", page_runtime=stub)
    (stub / "dist" / "ort.wasm.bundle.min.mjs").unlink()
    with pytest.raises(BundleError, match=r"without dist/ort\.wasm\.bundle\.min\.mjs"):
        make_bundle(run, exported, tmp_path / "b", page_runtime=stub)
    parity = json.loads((exported / PARITY).read_text())
    parity["artefacts"]["model_fp32.onnx"]["passed"] = False
    (exported / PARITY).write_text(json.dumps(parity))
    with pytest.raises(BundleError, match=r"model_fp32\.onnx failed parity"):
        make_bundle(run, exported, tmp_path / "b", page_runtime=stub)
    assert not (tmp_path / "b").exists()


def test_the_page_asks_nothing_of_other_hosts():
    for path in PAGE.iterdir():
        if "LICENSE" not in path.name:
            text = path.read_text().replace("http://localhost:8000", "")
            for word in text.replace("http://www.w3.org/2000/svg", "").split():  # a name, not an address
                assert "://" not in word or word.startswith(("(https://www.w3.org/", "https://www.w3.org/")), path.name
    assert "default-src 'none'" in (PAGE / "index.html").read_text()


def test_in_chromium_the_page_answers_as_python_does(browser, int8_bundle, pictures, tmp_path):
    model = BundledModel.load(int8_bundle)
    scale, zero_point = model.runner.logit_scale
    golden = sorted((int8_bundle / "golden").iterdir())
    Image.open(golden[0]).save(tmp_path / "scan.jpg", quality=90)
    (tmp_path / "broken.png").write_bytes(golden[0].read_bytes()[:300])
    paths = [*golden, pictures / "rgba.png", pictures / "grey_16.png"]
    with browser.showing(int8_bundle) as address:
        assert "8 golden images answered as in Python, 8 of them equal to the last bit" in browser.evaluate(
            "document.getElementById('status-text').textContent"
        )
        browser.choose("#files", [*paths, tmp_path / "scan.jpg", tmp_path / "broken.png"])
        answers = {answer["path"]: answer for answer in browser.answers(len(paths) + 2)}
        assert {request.split("/")[2] for request in browser.requests if "://" in request} == {address.split("/")[2]}
        browser.evaluate("document.querySelectorAll('.class, dt').forEach((one) => one.textContent = 'x'.repeat(80))")
        assert browser.width_on_a_phone() == 390  # the longest name of a class breaks
    assert not browser.problems
    files = [str(path) for path in [*paths, tmp_path / "scan.jpg"]]
    python = {Path(one.row["path"]).name: one.row for one in answer_series(model.answerer(), find_series(files))}
    for path in paths:
        expected, found = python[path.name], answers[path.name]
        logits = (np.float32(found["logits"]) - np.float32(zero_point)) * np.float32(scale)
        assert np.array_equal(logits, np.float32(expected["logits"])), path.name
        for key in ("class", "best", "notes"):
            assert found[key] == expected[key], path.name
        assert list(found["probabilities"].values()) == pytest.approx(list(expected["probabilities"].values()))
        assert found["outlier"] == pytest.approx(expected["outlier"])
    assert "may differ by 1 from Python's" in answers["scan.jpg"]["notes"][-1]
    assert answers["scan.jpg"]["best"] == python["scan.jpg"]["best"]
    assert "truncated or damaged PNG" in answers["broken.png"]["error"]


def change_golden(folder):
    with changed(folder, GOLDEN) as golden:
        golden["golden/pituitary_tall.png"]["answers"]["model_int8.onnx"]["logits"][2] += 2


def change_pixels(folder):
    (folder / "pixels.json").write_text('{"fit": "pad", "size": 32}')
    sign_again(folder, "pixels.json")


TAMPERINGS = {
    "model_int8.onnx has changed": lambda folder: change_a_byte(folder / "model_int8.onnx"),
    "labels.txt is missing": lambda folder: (folder / "labels.txt").unlink(),
    "golden/pituitary_tall.png: logits differ by 2": change_golden,
    "its pixels differ": change_pixels,
}


@pytest.mark.parametrize("message", TAMPERINGS)
def test_in_chromium_a_changed_bundle_is_refused(browser, int8_bundle, tmp_path, message):
    folder = shutil.copytree(int8_bundle, tmp_path / "copy")
    TAMPERINGS[message](folder)
    with browser.showing(folder, "refused"):
        assert message in browser.evaluate("document.getElementById('status-text').textContent")
        assert browser.evaluate("document.getElementById('files').disabled")


def test_in_chromium_float_files_answer_too(browser, tiny_run, tiny_export, tmp_path):
    with browser.showing(with_page(tiny_run, tiny_export, tmp_path / "clinic")):
        pass
