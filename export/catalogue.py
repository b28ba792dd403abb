"""The recipes by name, and the files that each makes. Without PyTorch, so that they can be listed at once."""

from typing import NamedTuple

ONNX_FP32, TFLITE_FP32 = "model_fp32.onnx", "model_fp32.tflite"
TFLITE_FP16 = "model_fp16.tflite"
ONNX_INT8, TFLITE_INT8 = "model_int8.onnx", "model_int8.tflite"
ONNX_W4A8, TFLITE_W4A8 = "model_w4a8.onnx", "model_w4a8.tflite"
TFLITE_INT8_TF = "model_int8_tf.tflite"
TFLITE_DYNAMIC_INT8 = "model_dynamic_int8.tflite"

PARITY_IMAGES = 256
"""Images that every export is checked on if not told otherwise, 64 of each class: Testing and val ones first."""


class Entry(NamedTuple):
    """What a recipe makes.

    Attributes:
        description: One line for ``--list``.
        files: Names of its files.
        needs: Recipes made before this one.
    """

    description: str
    files: tuple[str, ...]
    needs: tuple[str, ...] = ()


CATALOGUE = {
    "fp32": Entry("float32 ONNX and TFLite", (ONNX_FP32, TFLITE_FP32)),
    "fp16": Entry(
        "TFLite with float16 weights, computing in float32: half the bytes at the same speed", (TFLITE_FP16,), ("fp32",)
    ),
    "int8": Entry(
        "integers only: QDQ ONNX and INT8 TFLite with the scales that training learned, or calibrated ones",
        (ONNX_INT8, TFLITE_INT8),
    ),
    "w4a8": Entry(
        "4-bit weights, 8-bit activations: packed int4 ONNX and TFLite with learned rounding, or as trained",
        (ONNX_W4A8, TFLITE_W4A8),
    ),
    "int8_tf": Entry(
        "INT8 TFLite by TensorFlow's converter, the paper's way, to compare with", (TFLITE_INT8_TF,), ("fp32",)
    ),
    "dynamic_int8": Entry("TFLite with int8 weights; activations stay float32", (TFLITE_DYNAMIC_INT8,), ("fp32",)),
}
"""Name on the command line -> what it makes."""
