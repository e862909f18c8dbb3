"""Which module-level names a piece of Python uses: what a bundler must know of scopes."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

Origin = tuple[str, str]  # module, name in it

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass(frozen=True, slots=True)
class Use:
    """A name that stands for something of a module."""

    node: ast.Name
    name: str
    origin: Origin | None  # where a local import found it; None: look it up in this module
    enclosing: frozenset[str]  # names of the functions around it, which must not capture it


@dataclass(slots=True)
class Found:
    """What stands in one module-level statement."""

    uses: list[Use] = field(default_factory=list)
    local_imports: list[ast.ImportFrom] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Scope:
    bound: frozenset[str]
    imported: dict[str, Origin]
    is_class: bool


def inspect_statement(statement: ast.stmt, own_packages: Iterable[str]) -> Found:
    """List a module-level statement's uses of module-level names.

    Args:
        statement: not inside anything.
        own_packages: packages whose imports inside functions are looked through.
    """
    visitor = _Visitor(frozenset(own_packages))
    visitor.visit(statement)
    return visitor.found


def bound_names(statement: ast.stmt) -> list[str]:
    """Names that a module-level definition or assignment binds; imports are none."""
    match statement:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Import() | ast.ImportFrom():
            return []
    nodes = ast.walk(statement)
    return [n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]


def is_own(module: str | None, own_packages: Iterable[str]) -> bool:
    """Whether an import is of one of our packages."""
    return module is not None and module.split(".")[0] in own_packages


class _Visitor(ast.NodeVisitor):
    def __init__(self, own_packages: frozenset[str]) -> None:
        self.own_packages = own_packages
        self.found = Found()
        self._scopes: list[_Scope] = []

    def visit_Name(self, node: ast.Name) -> None:
        innermost = True
        for scope in reversed(self._scopes):
            if scope.is_class and not innermost:
                continue
            innermost = innermost and scope.is_class
            if node.id in scope.imported:
                self._use(node, scope.imported[node.id][1], scope.imported[node.id])
                return
            if node.id in scope.bound:
                return
        self._use(node, node.id, None)

    def _use(self, node: ast.Name, name: str, origin: Origin | None) -> None:
        around = [scope.bound for scope in self._scopes if not scope.is_class]
        self.found.uses.append(Use(node, name, origin, frozenset().union(*around)))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if self._scopes and is_own(node.module, self.own_packages):
            self.found.local_imports.append(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._function(node, node.body)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._function(node, node.body)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._function(node, [node.body])

    def _function(
        self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, body: Iterable[ast.AST]
    ) -> None:
        body = list(body)
        arguments = node.args
        for outside in [*getattr(node, "decorator_list", ()), getattr(node, "returns", None)]:
            self._visit_if(outside)
        for default in [*arguments.defaults, *arguments.kw_defaults]:
            self._visit_if(default)
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        named += [one for one in (arguments.vararg, arguments.kwarg) if one is not None]
        for one in named:
            self._visit_if(one.annotation)
        bound = {one.arg for one in named}
        imported: dict[str, Origin] = {}
        for inner in body:
            self._collect(inner, bound, imported)
        self._inside(_Scope(frozenset(bound - imported.keys()), imported, False), body)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for outside in [*node.decorator_list, *node.bases, *(k.value for k in node.keywords)]:
            self.visit(outside)
        bound: set[str] = set()
        imported: dict[str, Origin] = {}
        for inner in node.body:
            self._collect(inner, bound, imported)
        self._inside(_Scope(frozenset(bound), imported, True), node.body)

    def generic_visit(self, node: ast.AST) -> None:
        if not isinstance(node, _COMPREHENSIONS):
            super().generic_visit(node)
            return
        bound = {
            name.id
            for generator in node.generators
            for name in ast.walk(generator.target)
            if isinstance(name, ast.Name)
        }
        # the first iterable is evaluated outside
        self.visit(node.generators[0].iter)
        inner = [n for n in ast.iter_child_nodes(node) if not isinstance(n, ast.comprehension)]
        for number, generator in enumerate(node.generators):
            inner += [generator.target, *generator.ifs, *([generator.iter] if number else [])]
        self._inside(_Scope(frozenset(bound), {}, False), inner)

    def _inside(self, scope: _Scope, nodes: Iterable[ast.AST]) -> None:
        self._scopes.append(scope)
        for node in nodes:
            self.visit(node)
        self._scopes.pop()

    def _visit_if(self, node: ast.AST | None) -> None:
        if node is not None:
            self.visit(node)

    def _collect(self, node: ast.AST, bound: set[str], imported: dict[str, Origin]) -> None:
        for inner in _same_scope(node):
            match inner:
                case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                    bound.add(name)
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    bound.add(name)
                case ast.ClassDef(name=name):
                    bound.add(name)
                case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
                    bound.add(name)
                case ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
                    bound.add(name)
                case ast.ImportFrom() if is_own(inner.module, self.own_packages):
                    for alias in inner.names:
                        imported[alias.asname or alias.name] = (str(inner.module), alias.name)
                case ast.Import() | ast.ImportFrom():
                    bound |= {(a.asname or a.name).split(".")[0] for a in inner.names}


def _same_scope(node: ast.AST) -> Iterator[ast.AST]:
    """The node and what lies in it, but nothing inside further functions and classes."""
    yield node
    if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
        return
    for child in ast.iter_child_nodes(node):
        yield from _same_scope(child)
