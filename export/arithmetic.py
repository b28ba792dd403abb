"""Says in what the layers of a file compute."""

from export.graph.model_graph import FLOATS, HEAVY, INTEGERS, ModelGraph, Node

_RUN_TIME = frozenset({"DYNAMICQUANTIZELINEAR"})


def describe_kind(graph: ModelGraph) -> str:
    """Say in what the convolutions and dense layers compute, all kinds of them when they differ."""
    kinds = {_kind_of(graph, node) for node in weighted_layers(graph)}
    return " and ".join(sorted(kinds)) if kinds else "nothing with weights"


def weighted_layers(graph: ModelGraph) -> list[Node]:
    """Return the convolutions and dense layers."""
    return [node for node in graph.nodes if node.operator in HEAVY]


def _kind_of(graph: ModelGraph, node: Node) -> str:
    """Name the arithmetic of one weighted layer by its activation's and its weight's type."""
    activation, weight = (graph.tensors[name].kind for name in node.inputs[:2])
    producer = graph.producers().get(node.inputs[0])
    quantized_at_run_time = producer is not None and producer.operator in _RUN_TIME
    if quantized_at_run_time or (activation in FLOATS and weight in INTEGERS):
        return f"float32 with {weight} weights"
    names = {
        ("float32", "float32"): "float32", ("float32", "float16"): "float32 with float16 weights",
        ("float16", "float16"): "float16", ("int8", "int8"): "int8", ("uint8", "int8"): "int8",
        ("int8", "int4"): "int8 with int4 weights", ("uint8", "int4"): "int8 with int4 weights",
        ("int16", "int8"): "int16 with int8 weights",
    }  # fmt: skip
    return names.get((activation, weight), f"{activation} with {weight} weights")


def is_integer(graph: ModelGraph, node: Node) -> bool:
    """Return whether a layer computes on integers."""
    return bool(graph.computed_inputs(node)) and graph.tensors[node.inputs[0]].kind in INTEGERS
