"""Walk the graph of an MLX function and find what is computed in float32 when the model is not.

`mx.export_function` hands a callback every primitive with the types of its inputs and outputs. Two kinds of float32 are
meant: the rotation of queries and keys (the channels and their partners up, two products, their sum down) and the
statistics inside RMS norms. Each is an island in the graph: float32 values that touch 16-bit ones only through the casts
that make them and the cast that ends them. Everything else in float32 is a leak: it costs speed and memory, and spreads.

What the host computes for a call (mel frames, angles) is in the graph as a constant in float32; it must be cast at once
or belong to a rotation.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

WIDE = (mx.float32, mx.complex64, mx.float64)
ROTATION = {"AsType": 3, "Multiply": 2, "Add": 1}
NORM = {
    "AsType",
    "Square",
    "Reduce",
    "Broadcast",
    "Multiply",
    "Add",
    "Sqrt",
    "Rsqrt",
    "Reshape",
    "Squeeze",
    "ExpandDims",
}


@dataclass
class Primitive:
    name: str
    inputs: list[str]
    outputs: list[str]


@dataclass
class Graph:
    """What `mx.export_function` says, in its order."""

    types: dict[str, mx.Dtype] = field(default_factory=dict)
    inputs: set[str] = field(default_factory=set)
    constants: dict[str, mx.array] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    primitives: list[Primitive] = field(default_factory=list)

    def add(self, record: dict[str, Any]) -> None:
        kind = record["type"]
        if kind in ("inputs", "outputs"):
            self.types.update({name: dtype for name, _, dtype in record[kind]})
            names = [name for name, _, _ in record[kind]]
            if kind == "inputs":
                self.inputs.update(names)
            else:
                self.outputs.extend(names)
        elif kind == "constants":
            for name, array in record["constants"]:
                self.constants[name] = array
                self.types[name] = array.dtype
        elif kind == "primitive":
            for side in ("inputs", "outputs"):
                self.types.update({name: dtype for name, _, dtype in record[side]})
            sides = {side: [name for name, _, _ in record[side]] for side in ("inputs", "outputs")}
            self.primitives.append(Primitive(record["name"], **sides))

    def is_wide(self, name: str) -> bool:
        return self.types[name] in WIDE


def trace(function: Callable[..., Any], *args: mx.array) -> Graph:
    """The graph of one call."""
    graph = Graph()
    mx.export_function(graph.add, function, *args)
    return graph


def made_of_constants(graph: Graph) -> set[str]:
    """Values that no input of the function sways."""
    fixed = set(graph.constants)
    for primitive in graph.primitives:
        if fixed.issuperset(primitive.inputs):
            fixed.update(primitive.outputs)
    return fixed


def wide_islands(graph: Graph) -> list[list[Primitive]]:
    """Primitives that read or make float32, grouped by the float32 values they share."""
    parent: dict[str, str] = {}
    fixed = made_of_constants(graph)

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    def wide(primitive: Primitive) -> list[str]:
        # a constant, such as an epsilon or the angles, is shared by islands without joining them
        return [name for name in primitive.inputs + primitive.outputs if graph.is_wide(name) and name not in fixed]

    for primitive in graph.primitives:
        values = wide(primitive)
        for name in values[1:]:
            parent[root(name)] = root(values[0])
    islands: dict[str, list[Primitive]] = defaultdict(list)
    for primitive in graph.primitives:
        values = wide(primitive)
        if values:
            islands[root(values[0])].append(primitive)
    return list(islands.values())


def wide_weights(*arrays: mx.array) -> list[str]:
    """One line for each array that is kept in float32 and should not be."""
    return [f"a weight or state of shape {array.shape} is {array.dtype}" for array in arrays if array.dtype in WIDE]


def leaks(graph: Graph) -> list[str]:
    """One line for everything that is float32 and should not be."""
    found = [f"an output is {graph.types[name]}" for name in graph.outputs if graph.is_wide(name)]
    for island in wide_islands(graph):
        names = {primitive.name for primitive in island}
        is_rotation = Counter(primitive.name for primitive in island) == ROTATION
        is_norm = {"Square", "Reduce"} <= names <= NORM
        entries = [
            primitive
            for primitive in island
            if primitive.name == "AsType" and not any(graph.is_wide(name) for name in primitive.inputs)
        ]
        exits = [
            primitive
            for primitive in island
            if primitive.name == "AsType" and not any(graph.is_wide(name) for name in primitive.outputs)
        ]
        closed = len(entries) == (2 if is_rotation else 1) and len(exits) == 1
        if not (closed and (is_rotation or is_norm)):
            found.append("float32 flows through " + ", ".join(sorted(names)))
    return found
