"""One modelling file from the modules of the rooms: what `trust_remote_code` loads without us.

From the classes that transformers asks for, every definition they need is collected, in the order
of imports; imports of our own modules fall away, and names that two modules share are told apart.
The same sources give the same bytes.
"""

from __future__ import annotations

import ast
import builtins
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from conversion.bundle_names import Found, Origin, Use, bound_names, inspect_statement, is_own
from conversion.errors import BundleError

PACKAGES = ("qwen_vl", "model_store")
BUNDLE = "modeling_qwen_vl.py"
_MODULE = BUNDLE.removesuffix(".py")
# only some ways to use the model need these: the file must load without them
_OPTIONAL = ("rfc8785", "tiktoken", "urllib3")

CLASSES: Mapping[str, tuple[str, ...]] = {
    "qwen_vl.configuration": ("QwenVLConfig", "QwenVLTextConfig", "QwenVLVisionConfig"),
    "qwen_vl.modeling": ("QwenVLForConditionalGeneration", "QwenVLModel"),
    "qwen_vl.language": ("QwenVLTextModel",),
    "qwen_vl.vision": ("QwenVLVisionModel",),
    "qwen_vl.processing": ("QwenVLProcessor",),
    "qwen_vl.image_processing": ("QwenVLImageProcessor",),
    "qwen_vl.tokenization": ("QwenVLTokenizer",),
    "qwen_vl.fast_tokenizer": ("QwenVLTokenizerFast",),
}
MODEL_AUTO_MAP = {
    "AutoConfig": f"{_MODULE}.QwenVLConfig",
    "AutoModel": f"{_MODULE}.QwenVLModel",
    "AutoModelForCausalLM": f"{_MODULE}.QwenVLForConditionalGeneration",
    "AutoModelForImageTextToText": f"{_MODULE}.QwenVLForConditionalGeneration",
    "AutoProcessor": f"{_MODULE}.QwenVLProcessor",
    "AutoImageProcessor": f"{_MODULE}.QwenVLImageProcessor",
}
TOKENIZER_AUTO_MAP = {
    "AutoTokenizer": [f"{_MODULE}.QwenVLTokenizer", f"{_MODULE}.QwenVLTokenizerFast"],
    "AutoProcessor": f"{_MODULE}.QwenVLProcessor",
}
PROCESSOR_AUTO_MAP = {
    "AutoProcessor": f"{_MODULE}.QwenVLProcessor",
    "AutoImageProcessor": f"{_MODULE}.QwenVLImageProcessor",
}

_HEADER = '''"""Qwen-VL for transformers 5, in one file.

Generated from modelferry's own modules by `python -m conversion.to_transformers --bundle`. Change
it there and generate it again; this file is a copy. Apache-2.0.
"""

from __future__ import annotations
'''


@dataclass(frozen=True, slots=True)
class _Statement:
    module: str
    node: ast.stmt
    names: tuple[str, ...]
    found: Found


@dataclass(frozen=True, slots=True)
class _Module:
    name: str
    lines: tuple[bytes, ...]
    statements: tuple[_Statement, ...]
    own: Mapping[str, Origin]  # imported from us: local name -> where it comes from
    foreign: Mapping[str, str]  # imported from elsewhere: local name -> import statement
    before: tuple[str, ...]  # our modules that must stand in front
    mentioned: tuple[str, ...]  # all of our modules that it imports anywhere

    def statement_of(self, name: str) -> _Statement | None:
        return next((s for s in self.statements if name in s.names), None)


@cache
def bundle_source() -> bytes:
    """Return the modelling file.

    Raises:
        BundleError: the modules do something that this cannot carry over.
    """
    modules = {module.name: module for module in _in_order(_read_all(CLASSES))}
    kept = _reachable(modules, [(m, name) for m, names in CLASSES.items() for name in names])
    renamed = _final_names(modules, kept)
    parts = [_HEADER, _imports(modules, kept)]
    for module in modules.values():
        chosen = [s for s in module.statements if any((module.name, n) in kept for n in s.names)]
        if chosen:
            texts = [_text(modules, module, statement, renamed) for statement in chosen]
            heading = module.name.replace(".", "/")
            parts.append(f"# {heading}.py\n\n" + "\n".join(texts))
    source = "\n\n".join(part.rstrip() + "\n" for part in parts)
    _check(source)
    return source.encode()


def _read_all(roots: Iterable[str]) -> dict[str, _Module]:
    found: dict[str, _Module] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = _read(name)
            waiting += found[name].mentioned
    return found


def _read(name: str) -> _Module:
    package, _, stem = name.partition(".")
    source = (files(package) / f"{stem}.py").read_bytes()
    tree = ast.parse(source)
    own: dict[str, Origin] = {}
    foreign: dict[str, str] = {}
    before: list[str] = []
    statements: list[_Statement] = []
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            _note_import(node, own, foreign)
            before += _own_module(node)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for inner in node.body:  # annotations are never evaluated, so others are not kept
                if _own_module(inner):
                    _note_import(inner, own, foreign)
        elif names := tuple(bound_names(node)):
            found = inspect_statement(node, PACKAGES)
            statements.append(_Statement(name, node, names, found))
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            raise BundleError(f"{name}, line {node.lineno}: a statement that defines nothing")
    mentioned = [module for node in ast.walk(tree) for module in _own_module(node)]
    return _Module(
        name,
        tuple(source.splitlines()),
        tuple(statements),
        own,
        foreign,
        tuple(before),
        tuple(mentioned),
    )


def _own_module(node: ast.AST) -> list[str]:
    """The module of ours that a node imports from, if it does."""
    ours = isinstance(node, ast.ImportFrom) and is_own(node.module, PACKAGES)
    return [str(node.module)] if isinstance(node, ast.ImportFrom) and ours else []


def _note_import(node: ast.stmt, own: dict[str, Origin], foreign: dict[str, str]) -> None:
    if isinstance(node, ast.Import):
        for alias in node.names:
            renamed = f" as {alias.asname}" if alias.asname else ""
            foreign[alias.asname or alias.name.split(".")[0]] = f"import {alias.name}{renamed}"
    elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
        for alias in node.names:
            local = alias.asname or alias.name
            if is_own(node.module, PACKAGES):
                own[local] = (str(node.module), alias.name)
            else:
                renamed = f" as {alias.asname}" if alias.asname else ""
                foreign[local] = f"from {node.module} import {alias.name}{renamed}"


def _in_order(modules: Mapping[str, _Module]) -> Iterator[_Module]:
    """Each module after those it imports, otherwise by name."""
    done: set[str] = set()

    def visit(name: str) -> Iterator[_Module]:
        if name in done:
            return
        done.add(name)
        for other in sorted(modules[name].before):
            yield from visit(other)
        yield modules[name]

    for name in sorted(modules):
        yield from visit(name)


def _resolve(modules: Mapping[str, _Module], module: _Module, use: Use) -> Origin | None:
    """Where a use of one of our own names is defined; None for what others define."""
    origin = use.origin or module.own.get(use.name) or (module.name, use.name)
    while (again := modules[origin[0]].own.get(origin[1])) is not None:
        origin = again
    return origin if modules[origin[0]].statement_of(origin[1]) else None


def _reachable(modules: Mapping[str, _Module], roots: Iterable[Origin]) -> set[Origin]:
    kept: set[Origin] = set()
    waiting = list(roots)
    while waiting:
        origin = waiting.pop()
        if origin in kept:
            continue
        module = modules[origin[0]]
        statement = module.statement_of(origin[1])
        if statement is None:
            raise BundleError(f"{origin[0]} defines no {origin[1]}")
        kept |= {(module.name, name) for name in statement.names}
        found = (_resolve(modules, module, use) for use in statement.found.uses)
        waiting += [origin for origin in found if origin is not None]
    return kept


def _kept_statements(
    modules: Mapping[str, _Module], kept: set[Origin]
) -> Iterator[tuple[_Module, _Statement]]:
    for module in modules.values():
        for statement in module.statements:
            if any((module.name, name) in kept for name in statement.names):
                yield module, statement


def _imports(modules: Mapping[str, _Module], kept: set[Origin]) -> str:
    """The import lines of everything kept; a name may not mean two things."""
    wanted: dict[str, str] = {}
    for module, statement in _kept_statements(modules, kept):
        for use in statement.found.uses:
            line = None if use.origin else module.foreign.get(use.name)
            if line is not None and wanted.setdefault(use.name, line) != line:
                raise BundleError(f"{use.name} is imported as {wanted[use.name]!r} and {line!r}")
    optional = {name for name, line in wanted.items() if line.split()[1].split(".")[0] in _OPTIONAL}
    plain = sorted({wanted[name] for name in wanted.keys() - optional}, key=_import_order)
    text = "\n".join(plain) + "\n"
    for package in _OPTIONAL:
        names = sorted(n for n in optional if wanted[n].split()[1].split(".")[0] == package)
        if names:
            lines = [f"    {wanted[name]}" for name in names]
            none = " = ".join(names)
            text += "\n".join(["\ntry:", *lines, "except ImportError:", f"    {none} = None\n"])
    return text


def _import_order(line: str) -> tuple[bool, str]:
    return line.startswith("from"), line


def _final_names(modules: Mapping[str, _Module], kept: set[Origin]) -> dict[Origin, str]:
    """What each definition is called in the file: as before, unless two share a name."""
    taken = {name for module in modules.values() for name in module.foreign} | set(dir(builtins))
    owners: dict[str, list[str]] = defaultdict(list)
    for module, name in sorted(kept):
        owners[name].append(module)
    asked = {(module, name) for module, names in CLASSES.items() for name in names}
    final: dict[Origin, str] = {}
    for name, homes in owners.items():
        for home in homes:
            shared = len(homes) > 1 or name in taken
            stem = home.partition(".")[2]
            final[home, name] = (
                f"{name}_of_{stem}" if shared and (home, name) not in asked else name
            )
    if len(set(final.values())) != len(final):
        raise BundleError("two definitions end up with one name")
    return final


def _text(
    modules: Mapping[str, _Module],
    module: _Module,
    statement: _Statement,
    final: Mapping[Origin, str],
) -> str:
    """A statement's lines with the comment above it, its names made final."""
    node = statement.node
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
    last = node.end_lineno or node.lineno
    lines = dict(enumerate(module.lines, start=1))
    for line, start, end, new in sorted(_edits(modules, module, statement, final), reverse=True):
        lines[line] = lines[line][:start] + new.encode() + lines[line][end:]
    for local in statement.found.local_imports:
        for number in range(local.lineno, (local.end_lineno or local.lineno) + 1):
            del lines[number]
    while first > 1 and module.lines[first - 2].startswith(b"#"):
        first -= 1
    text = b"\n".join(lines[n] for n in range(first, last + 1) if n in lines).decode() + "\n"
    return "\n" + text + "\n" if isinstance(node, ast.ClassDef | ast.FunctionDef) else text


def _edits(
    modules: Mapping[str, _Module],
    module: _Module,
    statement: _Statement,
    final: Mapping[Origin, str],
) -> Iterator[tuple[int, int, int, str]]:
    for use in statement.found.uses:
        origin = _resolve(modules, module, use)
        if origin is None:
            continue
        new = final[origin]
        if new in use.enclosing:
            raise BundleError(f"{module.name}: a local {new} would hide the module's")
        name = use.node
        if new != name.id:
            yield name.lineno, name.col_offset, name.col_offset + len(name.id.encode()), new
    node = statement.node
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        new = final[module.name, node.name]
        if new != node.name:
            start = node.col_offset + len("class " if isinstance(node, ast.ClassDef) else "def ")
            yield node.lineno, start, start + len(node.name), new


def _check(source: str) -> None:
    """Compile the file, and look whether every name in it means something."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise BundleError(f"line {error.lineno}: {error.msg}") from error
    known = set(dir(builtins)) | {"__name__", "__file__"}
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    known |= {(a.asname or a.name).split(".")[0] for n in imports for a in n.names}
    known |= {name for statement in tree.body for name in bound_names(statement)}
    for statement in tree.body:
        for use in inspect_statement(statement, PACKAGES).uses:
            if use.name not in known:
                raise BundleError(f"line {use.node.lineno}: nothing defines {use.name}")
