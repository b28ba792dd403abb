"""Stands in for the commands of a study: writes in a moment what they would write in hours.

``python study_stand_in.py MODULE WORDS...`` as the study starts it; ``python study_stand_in.py study WORDS...`` is a
study whose commands are stood in for. Environment:
STAND_IN_CALLS: a file to note the commands in. STAND_IN_ANSWERS: the npz that every model answers with.
STAND_IN_FAIL, STAND_IN_HANG: commands that have this in them fail, or go on for ever after a first output.
STAND_IN_PARITY: the file that fails parity.
STAND_IN_ONLY: the modules to stand in for; the others run.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__)
PYTHON = (sys.executable, "-S", "-E", str(HERE))
"""-S: no packages, which take longer to find than everything else here."""

FILES = {"fp32": ("fp32.tflite", "fp32.onnx"), "fp16": ("fp16.tflite",)} | {
    name: (f"{name}.tflite", f"{name}.onnx") for name in ("int8", "w4a8")
}
LABELS = ("glioma", "meningioma", "notumor", "pituitary", "glioma", "notumor")
IMAGES = len(LABELS)


def main(module, *words):
    if module == "study":
        sys.path.insert(0, str(HERE.parents[2]))
        return run_study(words)
    only = os.environ.get("STAND_IN_ONLY", "")
    if only and module not in only.split():
        return subprocess.run([sys.executable, "-m", module, *words], check=False).returncode
    with open(os.environ["STAND_IN_CALLS"], "a") as calls:
        print(module, *words, file=calls)
    fail, hang = os.environ.get("STAND_IN_FAIL"), os.environ.get("STAND_IN_HANG")
    spoken = " ".join([module, *words])
    if fail and fail in spoken:
        print("error: made to fail")
        return 2
    return STAND_INS[module](words, bool(hang and hang in spoken))


def run_here(words, title, log, say):
    """Stand in for ``run_logged``: no process, which takes longer than what is stood in for."""
    with log.open("w") as output, contextlib.redirect_stdout(output):
        print(title)
        return main(*words)


def run_study(words):
    from tools.study.__main__ import main

    stand_in()
    return main(words)


def stand_in(patch=setattr):
    """Have a study start this file, and think that the code is committed."""
    from tools.study import process, runner

    patch(process, "PYTHON", PYTHON)
    patch(runner, "describe_code", lambda: "one commit")


def option(words, name):
    return words[words.index(name) + 1] if name in words else ""


def write_manifest(path):
    lines = ["path,label,split,group,sha256"]
    for split in ("Training", "val", "Testing"):
        lines += [f"{split}/{split}{i}.png,{label},{split},{split}{i},{i}" for i, label in enumerate(LABELS)]
    path.write_text("\n".join(lines) + "\n")


def fit(words, hang):
    out = Path(option(words, "--out"))
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text("data: {size: 32, fit: stretch, root: phantom}\n")
    if option(words, "--data.root") == "phantom":
        (out / "phantoms").mkdir(exist_ok=True)
        (out / "phantoms" / "one.png").write_bytes(b"one")
    given = option(words, "--data.manifest")
    if given:
        (out / "manifest.csv").write_bytes(Path(given).read_bytes())
    else:
        write_manifest(out / "manifest.csv")
    while hang:
        time.sleep(0.05)
    told = [word for word in words if word not in ("--out", option(words, "--out"))]
    (out / "checkpoints" / "1-all").mkdir(parents=True, exist_ok=True)
    (out / "checkpoints" / "1-all" / "last.ckpt").write_bytes(b"0" * 300)
    (out / "log.csv").write_text("epoch\n")
    leak = {"nearest_neighbour": 0.5, "nearest_neighbour_unseen": 0.5, "majority": 0.25}
    (out / "metrics.json").write_text(json.dumps({"leakage": {"Testing": leak}}))
    (out / "model.ckpt").write_text(hashlib.sha256(repr(told).encode()).hexdigest())
    return 0


def export(words, hang):
    run, out = Path(words[0]), Path(option(words, "--out"))
    out.mkdir(parents=True, exist_ok=True)
    while hang:
        time.sleep(0.05)
    recipes = [word for word in words[words.index("--recipes") + 1 : words.index("--out")] if word in FILES]
    artefacts = {}
    for name in (f"model_{name}" for recipe in recipes for name in FILES[recipe]):
        (out / name).write_text(name + (run / "model.ckpt").read_text())
        artefacts[name] = {"passed": os.environ.get("STAND_IN_PARITY") != name, "sha256": digest(out / name)}
    made_of = {"checkpoint_sha256": digest(run / "model.ckpt")}
    passed = all(artefact["passed"] for artefact in artefacts.values())
    (out / "parity.json").write_text(json.dumps({"passed": passed, "run": made_of, "artefacts": artefacts}))
    return 0 if passed else 1


def predictions(words, hang):
    shutil.copyfile(os.environ["STAND_IN_ANSWERS"], option(words, "--out"))
    return 0


def bench(words, hang):
    models = words[: words.index("--threads")]
    figures = {"latency_median_ms": 1.5, "latency_p90_ms": 2.5, "engine": "none", "peak_memory_bytes": 5}
    report = {"threads": 1, "rounds": 2, "calls_per_round": 3, "cpu": "none", "cpu_count": 1, "load_average": 0.0}
    report["models"] = [{"model": model, **figures} for model in models]
    Path(option(words, "--json")).write_text(json.dumps(report))
    return 0


def gradcam(words, hang):
    Path(option(words, "--out")).write_bytes(b"PNG")
    return 0


def report(words, hang):
    for name in ("report.html", "report.md"):
        (Path(words[0]) / name).write_text("report")
    return 0


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


STAND_INS = {
    "brainq_torch.fit": fit, "export": export, "tools.predictions": predictions, "tools.bench": bench,
    "tools.gradcam": gradcam, "tools.report": report,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
