"""Files as graphs: float ONNX, QDQ ONNX, TFLite, their integers and the checks on them."""
