"""The rules of the architecture: what may import what, and what must not occur.

A rule looks at one parsed file and yields a line for whatever breaks it. Names are traced through
imports and aliases; what is put together at run time from pieces is not seen.
"""

import ast
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("protocols", "parties", "mpc_train")

# Whoever stands left may import what stands right of it, and nothing else of ours.
ARROWS = {
    "protocols": set[str](),
    "parties": {"protocols"},
    "mpc_train": {"parties", "protocols"},
    "launch": {"mpc_train"},
    "examples": {"mpc_train"},
    "tests": {"launch", "mpc_train", "parties", "protocols"},
}


# Rooms, each with what stands below it: a module imports its own room and rooms before it. A file
# beside folders is a room of its own.
ROOMS = (
    *("protocols.errors", "protocols.arrays", "protocols.channel"),
    *("protocols.canonical", "protocols.names"),
    *("protocols.ring", "protocols.sealing", "protocols.roles", "protocols.shares"),
    "protocols.noise",
    *("protocols.comparison", "protocols.linkage", "protocols.functions"),
    *("protocols.crypten_tensor", "protocols.crypten_tensor.layers"),
    *("parties.errors", "parties.files", "parties.stop", "parties.process"),
    *("parties.keys", "parties.keys.services", "parties.vault", "parties.audit"),
    *("parties.wire", "parties.doctor", "parties.agreement", "parties.nodes"),
    *("mpc_train.errors", "mpc_train.base"),
    *("mpc_train.tables", "mpc_train.tables.readers", "mpc_train.tables.loading"),
    *("mpc_train.networks", "mpc_train.jobs", "mpc_train.privacy", "mpc_train.tables.drafts"),
    *("mpc_train.owners", "mpc_train.preparation", "mpc_train.linkage"),
    *("mpc_train.training.optimizers", "mpc_train.training"),
    *("mpc_train.checkpoints", "mpc_train.regression", "mpc_train.evaluation"),
    *("mpc_train.checks", "mpc_train.admission", "mpc_train.results", "mpc_train.twin"),
    "mpc_train.homomorphic",
    *(
        "mpc_train.shared",
        "mpc_train.serving",
        "mpc_train.asking",
        "mpc_train.gateway",
        "mpc_train.run.phases",
        "mpc_train.run",
        "mpc_train.federated",
        "mpc_train.federated.rounds",
        "mpc_train.estimates",
        "mpc_train.scripts",
        "mpc_train.live",
        "mpc_train.node",
        "mpc_train.commands",
        "mpc_train.commands.local",
        "mpc_train.commands.operating",
        "mpc_train.commands.serving",
        "mpc_train.commands.vault",
        "mpc_train.cli",
        "mpc_train.__main__",
    ),
)
MAX_MODULES = 14
"""In one folder, so that it can be taken in at a glance."""


@dataclass(frozen=True)
class Source:
    """One Python file: its path from the root, with slashes, and its syntax tree."""

    path: str
    tree: ast.Module

    @property
    def owner(self) -> str:
        """The package, folder or single module at the top of the path."""
        return self.path.split("/")[0].removesuffix(".py")

    @property
    def module(self) -> str:
        """Its name in imports."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @cached_property
    def imports(self) -> list[tuple[int, str]]:
        """Every import as line and absolute name, down to the name imported (`a.b.name`)."""
        return [(line, name) for line, name, _ in self.bindings]

    @cached_property
    def uses(self) -> list[tuple[ast.expr, str]]:
        """Every name and attribute chain with its first part traced to where it was imported."""
        origin = {alias: name for _, name, alias in self.bindings if alias}
        # CrypTen is handed on by our own modules and is still CrypTen.
        origin |= {alias: "crypten" for alias, name in origin.items() if name.endswith(".crypten")}
        found = []
        for node in ast.walk(self.tree):
            parts: list[str] = []
            inner: ast.AST = node
            while isinstance(inner, ast.Attribute):
                parts.insert(0, inner.attr)
                inner = inner.value
            if isinstance(inner, ast.Name) and isinstance(node, ast.expr):
                found.append((node, ".".join([origin.get(inner.id, inner.id), *parts])))
        return found

    @property
    def bindings(self) -> Iterator[tuple[int, str, str]]:
        """Line, absolute name imported, local name that it is bound to."""
        package = self.path.split("/")[:-1]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for item in node.names:
                    # `import a.b` binds `a`; only `import a.b as c` binds the whole.
                    local = item.asname or item.name.split(".")[0]
                    yield node.lineno, item.name, local if item.asname else ""
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) - node.level + 1] if node.level else []
                base = [*above, *([node.module] if node.module else [])]
                for item in node.names:
                    yield node.lineno, ".".join([*base, item.name]), item.asname or item.name
            elif isinstance(node, ast.Call) and node.args and called(node) in DYNAMIC_IMPORTS:
                argument = node.args[0]
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield node.lineno, argument.value, ""


@cache
def read_sources() -> tuple[Source, ...]:
    """Every module of the repository, parsed."""
    paths = [ROOT / "launch.py"] if (ROOT / "launch.py").exists() else []
    for top in (*PACKAGES, "examples", "tests"):
        paths += sorted((ROOT / top).rglob("*.py"))
    return tuple(
        Source(path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(), str(path)))
        for path in paths
    )


DYNAMIC_IMPORTS = {"__import__", "import_module"}

Rule = Callable[[Source], Iterator[str]]


def called(node: ast.Call) -> str:
    """The last part of what is called: `c` for `a.b.c(…)`."""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _within(name: str, *tops: str) -> bool:
    return any(name == top or name.startswith(top + ".") for top in tops)


def arrows_point_one_way(source: Source) -> Iterator[str]:
    for line, name in source.imports:
        target = name.split(".")[0]
        if target in ARROWS and target != source.owner and target not in ARROWS[source.owner]:
            yield f"{source.path}:{line}: {source.owner} imports {name}"


def room_of(module: str) -> str | None:
    """The innermost room that a module, or a name in it, belongs to."""
    rooms = [room for room in ROOMS if _within(module, room)]
    return max(rooms, key=len, default=None)


def rooms_rest_on_those_below(source: Source) -> Iterator[str]:
    """Imports for types alone count: whoever reads a room has to know what they name."""
    if source.owner not in PACKAGES or source.path.endswith("__init__.py"):
        return
    here = room_of(source.module)
    if here is None:
        yield f"{source.path}: stands in no room; tests/architecture.py lists them in their order"
        return
    for line, name in source.imports:
        there = room_of(name)
        if there is not None and ROOMS.index(there) > ROOMS.index(here):
            yield f"{source.path}:{line}: {here} imports {name}, which rests on it"


def nodes_run_without_the_twin(source: Source) -> Iterator[str]:
    """It pools everybody's rows: a node or a recipient has no use for it."""
    if source.owner != "mpc_train" or source.path.startswith("mpc_train/twin/"):
        return
    if source.path == "mpc_train/commands/local/run.py":  # which plays all parties on one machine
        return
    for line, name in source.imports:
        if _within(name, "mpc_train.twin"):
            yield f"{source.path}:{line}: imports {name}; only the local run compares with the twin"


def inits_are_empty(source: Source) -> Iterator[str]:
    """So that `parties` starts without torch or numba."""
    if source.owner in PACKAGES and source.path.endswith("__init__.py"):
        for node in source.tree.body:
            if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
                yield f"{source.path}:{node.lineno}: more than a docstring"


def circles(sources: Iterable[Source]) -> list[list[str]]:
    """Modules that import each other in a loop, each loop once, by where it was closed."""
    modules = {source.module: source for source in sources if source.owner in PACKAGES}
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            found.append(path[path.index(module) :])
        elif module not in done:
            for _, name in modules[module].imports:
                target = name if name in modules else name.rpartition(".")[0]
                if target in modules and target != module:
                    visit(target, [*path, module])
            done.add(module)

    for module in modules:
        visit(module, [])
    return found


def crowded(sources: Iterable[Source]) -> list[str]:
    """Folders with more modules than can be taken in."""
    counts = Counter(
        source.module.rpartition(".")[0]
        for source in sources
        if source.owner in PACKAGES and not source.path.endswith("__init__.py")
    )
    return [f"{folder}: {count}" for folder, count in counts.items() if count > MAX_MODULES]


PROGRAMS = ("mpc_train/run/program.py", "mpc_train/scripts/program.py")


def parties_enter_through_the_composition_root(source: Source) -> Iterator[str]:
    if source.owner != "mpc_train" or source.path.startswith(
        (
            *("mpc_train/commands/", "mpc_train/node/", "mpc_train/run/phases/"),
            *("mpc_train/shared/", "mpc_train/serving/", "mpc_train/asking/"),
            "mpc_train/federated/rounds/",
        )
    ):
        return
    if source.path in ("mpc_train/cli.py", *PROGRAMS):
        return
    for line, name in source.imports:
        if _within(name, "parties"):
            yield (f"{source.path}:{line}: imports {name}; only commands, node and programs may")


def zmq_has_one_module(source: Source) -> Iterator[str]:
    if source.owner == "tests" or source.path == "parties/wire/zmq_transport.py":
        return
    for line, name in source.imports:
        if _within(name, "zmq"):
            yield f"{source.path}:{line}: imports {name}; only parties/wire/zmq_transport.py may"


CRYPTEN_DOOR = "protocols.crypten_tensor"


def crypten_has_one_door(source: Source) -> Iterator[str]:
    """CrypTen is imported in one place, and handed on by the modules named after it."""
    if source.owner == "tests" or source.path == "protocols/crypten_tensor/importing.py":
        return
    for line, name in source.imports:
        if _within(name, "crypten"):
            yield f"{source.path}:{line}: imports {name}; take it from {CRYPTEN_DOOR}.importing"
        inside = source.path.startswith("protocols/crypten_tensor/")
        if _within(name, "protocols.crypten_tensor.importing") and not inside:
            yield f"{source.path}:{line}: imports {name}; take it from {CRYPTEN_DOOR}.tensor"


SHARED_IN_BY = ("from_evaluator", "from_dealer", "from_outside")


def tables_enter_through_crypten(source: Source) -> Iterator[str]:
    """`crypten.cryptensor(rows, src=…, shape=…)` is how an owner's numbers become shares."""
    if source.owner != "mpc_train":
        return
    if source.path == "mpc_train/federated/rounds/program.py":
        return  # updates are words of a scale of their own, and no table
    for line, name in source.imports:
        if name in {f"protocols.shares.inputs.{function}" for function in SHARED_IN_BY}:
            yield f"{source.path}:{line}: imports {name}; share in by crypten.cryptensor"


SCRIPTS_CRYPTEN = "mpc_train.scripts.crypten"
STOCK_PROTOCOL = ("crypten.mpc", "crypten.init", "crypten.generators", "crypten.common.rng")
REFUSES_INIT = "mpc_train/scripts/program.py"
"""Puts a refusal in the place of `crypten.init` while a script runs."""


def crypten_lends_no_protocol(source: Source) -> Iterator[str]:
    """Its tensor type, autograd and nn are used; its shares, seeds and transport are not safe."""
    if source.owner == "tests":
        return
    ours = {name for _, name in source.imports if _within(name, SCRIPTS_CRYPTEN)}
    if ours and not any(_within(name, "crypten") for _, name in source.imports):
        return  # a script: the name stands for what is offered there
    for line, name in source.imports:
        if _within(name, *STOCK_PROTOCOL):
            yield f"{source.path}:{line}: imports {name}"
    for use, name in source.uses:
        refused = name == "crypten.init" and str(source.path) == REFUSES_INIT
        if _within(name, *STOCK_PROTOCOL) and not refused:
            yield f"{source.path}:{use.lineno}: {name}"


UNSAFE_MODULES = ("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal")
PICKLING = ("torch.save", "crypten.save", "crypten.load", "shelve", "pandas.read_pickle")


def nothing_is_pickled(source: Source) -> Iterator[str]:
    """Loading such a file runs whatever its writer put into it."""
    if source.owner == "tests":
        return
    for line, name in source.imports:
        if _within(name, *UNSAFE_MODULES, *PICKLING):
            yield f"{source.path}:{line}: imports {name}"
    for use, name in source.uses:
        if name in PICKLING:
            yield f"{source.path}:{use.lineno}: {name} pickles"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and not _is(node, False):
            yield f"{source.path}:{node.value.lineno}: allow_pickle"


def torch_load_reads_weights_only(source: Source) -> Iterator[str]:
    safe = {
        id(node.func)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
        and any(keyword.arg == "weights_only" and _is(keyword, True) for keyword in node.keywords)
    }
    for node, name in source.uses:
        if name == "torch.load" and id(node) not in safe:
            yield f"{source.path}:{node.lineno}: torch.load without weights_only=True"


def _is(keyword: ast.keyword, value: bool) -> bool:
    return isinstance(keyword.value, ast.Constant) and keyword.value.value is value


TORCH_RANDOM = {
    *("rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm"),
    *("normal", "bernoulli", "multinomial", "poisson", "binomial", "Generator", "random"),
    *("manual_seed", "seed", "initial_seed", "default_generator", "distributions"),
}
FILL_IN_PLACE = {
    *("random_", "uniform_", "normal_", "bernoulli_", "exponential_", "geometric_"),
    *("cauchy_", "log_normal_"),
}


def masks_come_from_keyed_streams(source: Source) -> Iterator[str]:
    """These generators can be predicted; masks, keys and nonces must not be."""
    if source.owner not in ("protocols", "parties"):
        return
    weak = ("random", "numpy.random", "scipy.stats", *(f"torch.{name}" for name in TORCH_RANDOM))
    for line, name in source.imports:
        if _within(name, *weak):
            yield f"{source.path}:{line}: imports {name}"
    for use, name in source.uses:
        if _within(name, *(top for top in weak if "." in top)):
            yield f"{source.path}:{use.lineno}: {name}"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and node.attr in FILL_IN_PLACE:
            yield f"{source.path}:{node.lineno}: .{node.attr}"


OUTSIDE_WORLD = (
    *("time", "datetime", "socket", "socketserver", "ssl", "select", "selectors", "asyncio"),
    *("subprocess", "multiprocessing", "signal", "argparse", "typer", "http", "urllib"),
)


def protocols_touch_no_outside_world(source: Source) -> Iterator[str]:
    """No clock, socket, process, environment or command line; of `os` only its randomness."""
    if source.owner != "protocols":
        return
    for line, name in source.imports:
        from_os = _within(name, "os") and name not in ("os", "os.urandom")
        if from_os or _within(name, *OUTSIDE_WORLD) or name in ("sys.argv", "sys.stdin"):
            yield f"{source.path}:{line}: imports {name}"
    for node, name in source.uses:
        from_os = name.startswith("os.") and name != "os.urandom" and "os" in _modules(source)
        if from_os or name in ("sys.argv", "sys.stdin"):
            yield f"{source.path}:{node.lineno}: {name}"


def _modules(source: Source) -> set[str]:
    return {name for _, name in source.imports}


FOREIGN = frozenset({"_ltz", "_reset_gradients", "_get_forward_function_no_ctx", "_exit"})
"""Names of CrypTen and of the operating system."""


def underscores_stay_in_their_module(source: Source) -> Iterator[str]:
    """What another module uses has no underscore."""
    if source.owner not in PACKAGES:
        return
    ours = {
        *(node.name for node in ast.walk(source.tree) if isinstance(node, _DEFINITIONS)),
        *(
            node.attr if isinstance(node, ast.Attribute) else node.id
            for node in ast.walk(source.tree)
            if isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Store)
        ),
    }
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and _private(node.attr) and node.attr not in ours:
            yield f"{source.path}:{node.lineno}: {node.attr} belongs to another module"
    for line, name in source.imports:
        last = name.rpartition(".")[2]
        if _within(name, *PACKAGES) and _private(last):
            yield f"{source.path}:{line}: imports {last}"


_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in FOREIGN


def printing_has_one_door(source: Source) -> Iterator[str]:
    """`printing.say` escapes what could steer a terminal; whoever prints past it forgets to."""
    if source.owner not in ("parties", "mpc_train", "launch"):
        return
    if source.path == "mpc_train/base/printing.py":
        return
    for node, name in source.uses:
        if name in ("print", "sys.stdout.write", "sys.stderr.write"):
            yield f"{source.path}:{node.lineno}: {name}; use mpc_train.base.printing.say"


RULES: tuple[Rule, ...] = (
    arrows_point_one_way,
    rooms_rest_on_those_below,
    nodes_run_without_the_twin,
    inits_are_empty,
    parties_enter_through_the_composition_root,
    zmq_has_one_module,
    crypten_has_one_door,
    crypten_lends_no_protocol,
    nothing_is_pickled,
    torch_load_reads_weights_only,
    masks_come_from_keyed_streams,
    printing_has_one_door,
    tables_enter_through_crypten,
    underscores_stay_in_their_module,
    protocols_touch_no_outside_world,
)
