"""A study folder made by hand, with answers drawn from a seed: what ``tools.study`` would have left behind."""

import json

import numpy as np
from PIL import Image

from brainq_torch.data.classes import CLASSES

# By id: family, recipe, file, bytes, ONNX twin, noise beside the float logits (None: not done).
ROWS = {
    "mobilenetv2_float": ("MobileNetV2", "float, PyTorch", "model.ckpt", 8900, None, 0.0),
    "mobilenetv2_fp32": ("MobileNetV2", "FP32 TFLite", "model_fp32.tflite", 8800, "model_fp32.onnx", 0.0),
    "mobilenetv2_fp16": ("MobileNetV2", "Float16", "model_fp16.tflite", 4400, None, 0.01),
    "mobilenetv2_int8_ptq": ("MobileNetV2", "PTQ INT8", "model_int8.tflite", 2700, "model_int8.onnx", 0.6),
    "mobilenetv2_int8_qat": ("MobileNetV2", "QAT INT8", "qat_int8.tflite", 2700, "qat_int8.onnx", 0.4),
    "mobilenetv2_w4_naive": ("MobileNetV2", "W4A8, rounded to nearest", "model_w4.tflite", 1600, None, 6.0),
    "densenet32_float": ("DenseNet-32", "float, PyTorch", "dense.ckpt", 1100, None, 0.0),
    "densenet32_int8": ("DenseNet-32", "INT8", "dense_int8.tflite", 330, "dense_int8.onnx", 0.8),
    "densenet32_w4a8": ("DenseNet-32", "W4A8", "dense_w4a8.tflite", 0, None, None),
}
NOT_DONE = "densenet32_w4a8"
COMMAND = "python -m export runs/densenet32 --recipes w4a8"
STRENGTH = 5.0
TIMES = {"threads": 1, "runs": 100, "engine": "LiteRT", "peak_memory_bytes": 1000}


def write_study(folder, images=240, unseen=80, names=tuple(ROWS)):
    """Write the folder: nine rows of two families, one of them not done, or some of them."""
    for name in ("predictions", "latency", "runs", "sources"):
        (folder / name).mkdir(parents=True)
    (folder / "sources/config.yaml").write_text("seed: 0\n")
    (folder / "runs/parity.json").write_text('{"passed": true}\n')
    Image.new("RGB", (400, 200), "#406080").save(folder / "gradcam.png")
    data = {
        "root": "brain-tumor-mri-dataset", "split": "Testing", "images": images, "unseen": unseen,
        "nearest_neighbour": {"all": 0.977, "unseen": 0.906}, "majority": 0.309,
    }  # fmt: skip
    study = {
        "format": 1, "title": "Study of a test", "data": data, "classes": list(CLASSES),
        "created_from": {"commit": "0123456789abcdef", "config": "sources/config.yaml"},
        "rows": [_write_row(folder, name, images, unseen) for name in names],
        "order": list(names),
        "gradcam": {"row": "mobilenetv2_float", "file": "gradcam.png"},
    }  # fmt: skip
    write_json(folder, study)
    return folder


def read_json(folder):
    return json.loads((folder / "study.json").read_text())


def write_json(folder, study):
    (folder / "study.json").write_text(json.dumps(study))


def change_row(folder, name, **changes):
    """Change keys of a row of study.json."""
    study = read_json(folder)
    next(row for row in study["rows"] if row["id"] == name).update(changes)
    write_json(folder, study)


def change_arrays(folder, name, **changes):
    """Replace arrays of a row's answers; None takes one away."""
    path = folder / f"predictions/{name}.npz"
    arrays = dict(np.load(path)) | changes
    np.savez_compressed(path, **{key: array for key, array in arrays.items() if array is not None})


def write_latency(folder, name, litert, onnxruntime=None):
    """Write a row's times in each engine: None, or median_ms and p90_ms with ``TIMES``."""
    machine = {"cpu": "AMD", "cpu_count": 2, "load_average": 8.25, "bench": "latency/bench.json"}
    times = {"litert": litert, "onnxruntime": onnxruntime}
    (folder / f"latency/{name}.json").write_text(json.dumps(times | machine))


def _write_row(folder, name, images, unseen):
    family, recipe, file, size, twin, noise = ROWS[name]
    entry = {
        "id": name, "family": family, "recipe": recipe, "float": f"{name.split('_')[0]}_float",
        "run": f"runs/{family.lower()}",
        "status": "done" if noise is not None else "not done", "sources": {"config": "sources/config.yaml"},
        "omitted": [],
        "commands": [COMMAND if noise is None else f"python -m export runs/{family.lower()}"],
    }  # fmt: skip
    if noise is None:
        return entry | {"reason": "rounding was stopped after 60 minutes"}
    for path, length in ((file, size), (twin, size + 50)):
        if path:
            (folder / "runs" / path).write_bytes(bytes(length))
    _write_answers(folder, name, family, noise, images, unseen)
    checkpoint = file.endswith(".ckpt")
    times = {"median_ms": size / 1000, "p90_ms": size / 800} | TIMES
    if not checkpoint:
        write_latency(folder, name, litert=times, onnxruntime=times if twin else None)
    return entry | {
        "file": f"runs/{file}", "bytes": size, "checkpoint_bytes": 26700, "onnx_twin": f"runs/{twin}" if twin else None,
        "parity": None if checkpoint else {"passed": noise < 5, "file": "runs/parity.json", "entry": file},
        "predictions": f"predictions/{name}.npz", "latency": None if checkpoint else f"latency/{name}.json",
        "abstention": {"temperature": 0.8, "threshold": 0.5} if "int8" in name else None,
    }  # fmt: skip


def _write_answers(folder, name, family, noise, images, unseen):
    parts = {}
    for prefix, count, seed in (("", images, 1), ("val_", images // 2, 2)):
        shared = np.random.default_rng([seed, sum(map(ord, family))])
        labels = np.arange(count) % len(CLASSES)
        logits = STRENGTH * np.eye(len(CLASSES))[labels] + 1.9 * shared.normal(size=(count, len(CLASSES)))
        logits += noise * np.random.default_rng([seed, sum(map(ord, name))]).normal(size=logits.shape)
        seen = np.arange(count) >= unseen if not prefix else np.zeros(count, bool)
        parts |= {
            f"{prefix}logits": logits.astype(np.float32), f"{prefix}labels": labels, f"{prefix}unseen": ~seen,
            f"{prefix}paths": np.array([f"{CLASSES[label]}/{prefix}Te_{i:04}.jpg" for i, label in enumerate(labels)]),
        }  # fmt: skip
    np.savez_compressed(folder / f"predictions/{name}.npz", **parts)
