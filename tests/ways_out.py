"""Ways by which a share or a Δ can leave a node, and the files that may go them.

A leak needs two things: words of a share or an opened value in hand, and something that sends,
seals or shows them. Both are banned by name outside the files listed here, each with its reason. A
name is found as an attribute of anything, through imports and their aliases, in a look-up by a
constant string, and in a class pattern. What is put together at run time from pieces is not seen;
looking attributes up by names that are not constant is therefore a way as well.

A file is listed as a whole, or as `file: expression` for that expression alone.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.architecture import PACKAGES, Rule, Source, called

WIRE = (
    *("protocols.errors", "protocols.arrays", "protocols.channel"),
    *("protocols.canonical", "protocols.names"),
    "protocols.sealing",
)
"""What of `protocols` knows bytes and keys, and neither shares nor masks."""
PUBLIC = (
    *(f"protocols.ring.{name}" for name in ("tiles", "products", "rational", "fixed_point")),
    "protocols.comparison.bit_programs",
    "protocols.comparison.plan",
    "protocols.functions.matrix_inverse_plan",
    "protocols.functions.spline_tables",
)
"""What of it knows numbers that everybody has, or works on words without knowing whose."""


@dataclass(frozen=True)
class Way:
    """What goes out, by which names, and who may use them: file or `file: expression`, reason.

    members: attributes, whatever they hang on. names: of functions and classes, which are also
    found where they are imported.
    """

    what: str
    members: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    users: Mapping[str, str] = field(default_factory=dict)


_VALUE_TYPES = "it defines the type, and what is local on it"
_FORMULA = "its formulas are over Δ and mask shares"
_HUBER = "Huber's δ, a public number of the job"
_SPREAD = "spreads one bit over a tensor: the same words, more often"
_OWN_STATE = "its own state"
_FUNCTIONS = "CrypTen's functions by their names"
_NUMBERS = "numbers of steps, folds, rows and bytes"
_SCRIPT = "a script that all parties have signed; it passes the reveal gate"
_RANK = "another thing: who this party is"
_SHAPES_ALONE = "a dry run in one process: shapes without words, and nobody to send to"
_OPERATION = "an operation by its name"

WAYS: tuple[Way, ...] = (
    Way(
        "a mask that no keyed stream drew, or one taken a second time",
        names=frozenset({"Mask"}),
        users={
            "protocols/roles/evaluator.py": (
                "shares of masks, from the stream that the dealer has too"
            ),
            "protocols/roles/dealer.py": "sums of these shares",
            "mpc_train/tables/loading/filling.py: cells.Mask": (
                "another thing: which cells are missing"
            ),
        },
    ),
    Way(
        "a frame",
        members=frozenset({"send"}),
        names=frozenset({"send_all"}),
        users={
            "mpc_train/checkpoints/keeper.py": "a public position, HMACs under a pair's key, bits",
            "mpc_train/shared/agreeing.py": "a public outline, HMACs under a pair's key",
            "mpc_train/homomorphic/asking.py": "a client's ciphertexts; no run, and no shares",
            "mpc_train/commands/serving/connections.py": "ciphertexts; no run, and no shares",
            "mpc_train/serving/lanes.py: self._net.send": "hands on what the dealer's role sends",
            "mpc_train/serving/program.py: self._net.send": (
                "which questions come next, how much is made, which units were missed: names and "
                "numbers"
            ),
            "mpc_train/federated/rounds/program.py": (
                "who takes part, records of rounds; to the first evaluator summands that passed "
                "the reveal gate under pads, to owners the sum under pads, and the keys of these"
            ),
            "protocols/roles/frames.py": "cuts payloads into frames",
            "protocols/roles/evaluator.py": (
                "shares of openings under their masks, seeds, empty frames"
            ),
            "protocols/roles/dealer.py": "corrections, the dealer's own masked input, empty frames",
            "protocols/shares/inputs.py": (
                "summands of an outside owner, of which one alone says nothing"
            ),
            "protocols/linkage/intersection.py": (
                "lists that are masked, parts of the holders' key, a size"
            ),
            "mpc_train/evaluation/own.py": "shares that passed the reveal gate, to their owner",
            "mpc_train/evaluation/telling.py": "metrics that passed the reveal gate, to every node",
        },
    ),
    Way(
        "a frame to all evaluators",
        members=frozenset({"broadcast"}),
        users={
            "protocols/shares/inputs.py": "Δ of a masked input, its own or a visitor's",
            "protocols/linkage/shuffle.py": "Δ of permuted rows under a fresh mask",
            "protocols/shares/reveal.py": "fresh shares of the mask of a listed output",
        },
    ),
    Way(
        "a decision or a number to nodes that do not evaluate",
        names=frozenset({"tell"}),
        users={
            "protocols/shares/reveal.py": "a bit that passed the reveal gate",
            "mpc_train/linkage/link.py": "how many records are joined, which the job discloses",
            "mpc_train/estimates/rehearsal.py: x.role.tell": _SHAPES_ALONE,
            "mpc_train/federated/mean.py: role.tell": (
                "of each update, whether it is within the limit, as a script has opened it"
            ),
            "mpc_train/tables/readers/columnar.py: file.tell": (
                "another thing: where a file is read"
            ),
            "mpc_train/commands/serving/query.py: file.tell": (
                "another thing: where a file is written"
            ),
        },
    ),
    Way(
        "Δ and shares of λ",
        members=frozenset({"delta", "lam"}),
        users={
            "mpc_train/checkpoints/summands.py": "what a node keeps, encrypted, in its own vault",
            "mpc_train/checkpoints/joined.py": "the same, of joined rows",
            "protocols/shares/masked.py": _VALUE_TYPES,
            "protocols/shares/arithmetic.py": _FORMULA,
            "protocols/shares/pieces.py": _FORMULA,
            "protocols/comparison/compare.py": _FORMULA,
            "protocols/linkage/shuffle.py": "permutes them under a fresh mask",
            "protocols/shares/reveal.py": "the reveal gate",
            "mpc_train/evaluation/own.py: half.delta": "passed the reveal gate",
            "mpc_train/evaluation/own.py: half.lam": "passed the reveal gate",
            "mpc_train/run/phases/reveal.py: half.delta": "passed the reveal gate, to be sealed",
            "mpc_train/run/phases/reveal.py: half.lam": "passed the reveal gate, to be sealed",
            "mpc_train/serving/program.py: half.delta": "passed the reveal gate, to who asked",
            "mpc_train/serving/program.py: half.lam": "passed the reveal gate, to who asked",
            "protocols/shares/computed.py: value.delta": "has it computed, and lets it go",
            "mpc_train/training/range_guard.py: words.delta": "has it computed, and lets it go",
            "mpc_train/training/optimizers/adaptive.py: square.delta": "adds up early forms",
            "mpc_train/training/optimizers/adaptive.py: early.delta": "adds up early forms",
            "mpc_train/training/optimizers/adaptive.py: early.lam": "adds up early forms",
            "mpc_train/training/optimizers/adaptive.py: square.lam": "adds up early forms",
            "mpc_train/checks/check_train.py: loss.delta": _HUBER,
            "mpc_train/admission/ranges.py: loss.delta": _HUBER,
            "mpc_train/training/losses.py: self.delta": _HUBER,
            "mpc_train/admission/representable.py: loss.delta": _HUBER,
            "mpc_train/training/setup.py: settings.delta": _HUBER,
            "mpc_train/twin/setup.py: settings.delta": _HUBER,
        },
    ),
    Way(
        "β and shares of μ",
        members=frozenset({"beta", "mu"}),
        users={
            "protocols/shares/masked.py": _VALUE_TYPES,
            "protocols/shares/arithmetic.py": _FORMULA,
            "protocols/comparison/compare.py": _FORMULA,
            "mpc_train/training/watch.py: better.beta": _SPREAD,
            "mpc_train/training/watch.py: better.mu": _SPREAD,
            "mpc_train/networks/convert_rules.py: layer.beta": "Softplus's β, a public number",
        },
    ),
    Way(
        "the value of a deferred opening",
        members=frozenset({"get", "then", "_value"}),
        users={
            "mpc_train/checkpoints/summands.py": "what a node keeps, encrypted, in its own vault",
            "mpc_train/checkpoints/joined.py": "the same, of joined rows",
            "protocols/roles/deferred.py": "defines them",
            "examples/crypten_script/logistic_regression.py: crypten.communicator.get": _RANK,
            "examples/crypten_script/small_network.py: crypten.communicator.get": _RANK,
            "protocols/roles/evaluator.py: part.then": (
                "an opening begins once its summand is there"
            ),
            "protocols/linkage/shuffle.py: x.delta.get": (
                "permuted under a fresh mask before it is sent"
            ),
            "protocols/shares/reveal.py: fresh.delta.get": "the reveal gate",
            "protocols/shares/reveal.py: z.part.get": "the reveal gate",
            "mpc_train/serving/lanes.py: found.part.get": (
                "this evaluator's summand of counts, kept in memory until their release"
            ),
            "protocols/shares/computed.py: words.get": "drops what it gets",
            "mpc_train/gateway/instances.py: row.get": "a cell of a client's own request",
        },
    ),
    Way(
        "what a role keeps: keys of streams, openings on their way, its channel",
        members=frozenset(
            {"_channel", "_stream", "_streams", "_common", "_pending", "_share", "_others"}
        ),
        users={
            "protocols/roles/evaluator.py": _OWN_STATE,
            "protocols/roles/dealer.py": _OWN_STATE,
            "protocols/roles/openings.py": _OWN_STATE,
            "protocols/shares/inputs.py": _OWN_STATE,
        },
    ),
    Way(
        "half of a revealed tensor",
        names=frozenset({"SealedHalf"}),
        users={
            "protocols/shares/reveal.py": (
                "the reveal gate makes it, under fresh shares of a fresh mask"
            ),
        },
    ),
    Way(
        "a whole tensor, in CrypTen's own way",
        members=frozenset({"get_plain_text"}),
        users={
            "examples/crypten_script/logistic_regression.py": _SCRIPT,
            "examples/crypten_script/small_network.py": _SCRIPT,
        },
    ),
    Way(
        "a sealed file",
        members=frozenset({"emit"}),
        names=frozenset({"seal_envelope", "seal_result"}),
        users={
            "mpc_train/results/artifact.py": "a model or metrics, sealed to who may open them",
            "mpc_train/results/contribution.py": "a recipient's shares of keys, sealed to another",
            "mpc_train/run/phases/reveal.py": "halves that passed the reveal gate",
        },
    ),
    Way(
        "news of a run",
        members=frozenset({"progress"}),
        users={
            "mpc_train/run/phases/store.py": _NUMBERS,
            "mpc_train/run/program.py": _NUMBERS,
            "mpc_train/run/phases/link.py": _NUMBERS,
            "mpc_train/run/phases/share.py": _NUMBERS,
            "mpc_train/run/phases/evaluate.py": _NUMBERS,
            "mpc_train/serving/program.py": _NUMBERS,
            "mpc_train/federated/rounds/program.py": _NUMBERS,
        },
    ),
)

FIELDS = Way(
    "all fields of a value at once, or one by a name",
    members=frozenset({"__dict__", "__getattribute__"}),
    names=frozenset({"vars", "astuple", "asdict", "getattr_static"}),
    users={
        "protocols/crypten_tensor/routing.py: crypten.CrypTensor.__getattribute__": _FUNCTIONS,
        "protocols/crypten_tensor/tensor.py: object.__getattribute__": _FUNCTIONS,
        "protocols/crypten_tensor/routing.py: inspect.getattr_static": _FUNCTIONS,
        "protocols/crypten_tensor/routing.py: getattr(_COMMON, module)": _FUNCTIONS,
        "protocols/crypten_tensor/tensor.py: getattr(crypten, name)": _FUNCTIONS,
        "protocols/crypten_tensor/tensor.py: getattr(args[1], name)": _OPERATION,
        "protocols/functions/splines.py: getattr(spline_tables, name)": "public tables",
        "mpc_train/estimates/rehearsal.py": _SHAPES_ALONE,
        "mpc_train/evaluation/folds.py: getattr(self._role, name)": "hands a role's methods on",
        "mpc_train/networks/network.py: getattr(left.tensor, name)": _OPERATION,
        "mpc_train/networks/network.py: getattr(left.as_rows(), name)": _OPERATION,
        "mpc_train/networks/network.py: getattr(x, name)": _OPERATION,
    },
)
"""Only where shares are at hand: in the arithmetic and in what imports it."""

LOOK_UPS = ("getattr", "attrgetter", "methodcaller", "__getattribute__", "getattr_static")


@dataclass(frozen=True)
class Found:
    """A use of a way: where it stands, and what is written there."""

    path: str
    line: int
    expression: str
    way: Way

    @property
    def listed(self) -> str | None:
        """Which entry of the way's users allows it."""
        for entry in (self.path, f"{self.path}: {self.expression}"):
            if entry in self.way.users:
                return entry
        return None

    def __str__(self) -> str:
        return (
            f"{self.path}:{self.line}: {self.expression}: {self.way.what}; if it has to be here, "
            "list it with its reason in tests/ways_out.py"
        )


def knows_arithmetic(source: Source) -> bool:
    """Whether shares can be at hand: an arithmetic module of `protocols`, or an import of one."""
    if source.owner == "protocols":
        return not _within(source.path.removesuffix(".py").replace("/", "."), WIRE)
    return any(_beyond(name, (*WIRE, *PUBLIC)) for _, name in source.imports)


def _beyond(name: str, known: Sequence[str]) -> bool:
    """Whether something of `protocols` is imported that is in none of `known`."""
    return _within(name, ("protocols",)) and name != "protocols" and not _within(name, known)


def _within(name: str, places: Sequence[str]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def shares_leave_by_listed_ways(source: Source) -> Iterator[str]:
    for found in uses_of_ways(source):
        if found.listed is None:
            yield str(found)


def parties_know_no_arithmetic(source: Source) -> Iterator[str]:
    """What `parties` sends and writes is not looked at here: it has no share to give away."""
    if source.owner != "parties":
        return
    for line, name in source.imports:
        if _beyond(name, WIRE) or name == "protocols":
            yield f"{source.path}:{line}: imports {name}; of protocols, parties take the wire only"


def uses_of_ways(source: Source) -> Iterator[Found]:
    """Every use of a way in a file, listed or not."""
    if source.owner in ("tests", "parties"):
        return
    ways = (*WAYS, FIELDS) if knows_arithmetic(source) else WAYS
    named = {name: way for way in ways for name in way.names}
    members = named | {name: way for way in ways for name in way.members}

    def found(node: ast.AST, way: Way, expression: str | None = None) -> Found:
        line = getattr(node, "lineno", 0)
        return Found(source.path, line, expression or ast.unparse(node), way)

    for line, name, alias in source.bindings:
        last = name.split(".")[-1]
        if last == "*" and name.split(".")[0] in PACKAGES:
            yield Found(source.path, line, f"import {name}", FIELDS)
        if last in named and alias not in ("", last):
            yield Found(source.path, line, f"import {name} as {alias}", named[last])
    annotations = _annotations(source.tree)
    # `x.get(key)` is a dictionary's: a deferred value's takes no argument.
    plain = {
        id(call.func)
        for call in ast.walk(source.tree)
        if isinstance(call, ast.Call) and (call.args or call.keywords)
    }
    traced = {id(node): name for node, name in source.uses if isinstance(node, ast.Name)}
    own = {node.name for node in source.tree.body if isinstance(node, _DEFINITIONS)}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and node.attr in members and id(node) not in annotations:
            if node.attr != "get" or id(node) not in plain:
                yield found(node, members[node.attr])
        elif isinstance(node, ast.Name) and id(node) not in annotations:
            origin = traced.get(id(node), node.id)
            last = origin.split(".")[-1]
            if last in named and (origin != node.id or last in own or last in BUILT_IN):
                yield found(node, named[last])
        elif isinstance(node, ast.Call) and called(node) in LOOK_UPS:
            yield from _looked_up(node, members, found)
        elif isinstance(node, ast.MatchClass):
            for name in node.kwd_attrs:
                if name in members:
                    yield found(node, members[name])
            if node.patterns and FIELDS in ways:
                yield found(node, FIELDS)


_DEFINITIONS = (ast.FunctionDef, ast.ClassDef)
BUILT_IN = ("vars",)


def _looked_up(
    call: ast.Call, members: Mapping[str, Way], found: Callable[..., Found]
) -> Iterator[Found]:
    """`getattr(x, "name")` and its like, by a constant or, where shares are at hand, otherwise."""
    constants = [a.value for a in call.args if isinstance(a, ast.Constant)]
    for text in constants:
        for part in str(text).split("."):
            if part in members:
                yield found(call, members[part])
    if FIELDS in members.values() and called(call) == "getattr" and not constants:
        shown = ", ".join(ast.unparse(argument) for argument in call.args[:2])
        yield found(call, FIELDS, f"{ast.unparse(call.func)}({shown})")


def _annotations(tree: ast.Module) -> set[int]:
    """Nodes that only say what type something has."""
    roots: list[ast.AST | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            roots.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            roots.append(node.returns)
    return {id(inner) for root in roots if root is not None for inner in ast.walk(root)}


WAY_RULES: tuple[Rule, ...] = (shares_leave_by_listed_ways, parties_know_no_arithmetic)
