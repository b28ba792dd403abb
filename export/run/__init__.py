"""Runs checkpoints, ONNX and TFLite files behind one signature."""
