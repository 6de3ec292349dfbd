"""A deployments file: YAML read with the line of everything, so that an error can name it; and written."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jupyter_dsserve.protocol.errors import DSServeError, InvalidRequest

API_VERSION = "dsserve/v1"
LOOK_S = 1.0  # between looks at a file that is watched
_KEYS = ("apiVersion", "deployments")


@dataclass(frozen=True, slots=True)
class Manifest:
    """``deployments`` as ``POST /api/apply`` takes them; ``file`` and ``_root`` say where they stand."""

    file: Path
    deployments: dict[str, Any]
    _root: yaml.Node

    @staticmethod
    def read(file: str | Path) -> Manifest:
        """Raises `InvalidRequest` with the file's name and the line of what is wrong. A ``model`` that is a path is
        seen from the file's directory."""
        try:
            path = Path(file).expanduser()
            text = path.read_text()
        except (OSError, RuntimeError, ValueError) as fault:  # no such user's home; no UTF-8, or no path
            raise InvalidRequest(f"{file} cannot be read ({fault}): give a deployments file") from None
        try:
            root = yaml.compose(text, _Loader)
            found = _Loader("").construct_document(root) if root else None
        except yaml.MarkedYAMLError as fault:
            mark = fault.problem_mark
            raise InvalidRequest(
                f"{path}, line {mark.line + 1 if mark else 1}: {fault.problem or 'it is not YAML'}"
            ) from None
        except (yaml.YAMLError, RecursionError) as fault:
            raise InvalidRequest(f"{path} is not YAML ({fault})") from None
        if root is None or not isinstance(found, dict) or not isinstance(found.get("deployments"), dict):
            raise InvalidRequest(f"{path} holds no deployments: write 'deployments:' and below it the names")
        manifest = Manifest(path, found["deployments"], root)
        for key in found:
            if key not in _KEYS:
                near = difflib.get_close_matches(key, _KEYS, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(_KEYS)}"
                raise InvalidRequest(f"{manifest.place(key)}: unknown field {key!r}: {hint}")
        if (version := found.get("apiVersion", API_VERSION)) != API_VERSION:
            raise InvalidRequest(
                f"{manifest.place('apiVersion')}: apiVersion is {version!r}, and this one reads {API_VERSION!r}"
            )
        manifest._find_models()
        return manifest

    def place(self, where: str) -> str:
        """``FILE, line N`` of a field such as ``deployments.demo.versions.v1.tp``, or of what is nearest around it."""
        node, line = self._root, 0
        while where and isinstance(node, yaml.MappingNode):
            # A name may have dots in it itself: the longest that fits.
            names = [(key.value, key, value) for key, value in node.value]
            fitting = [n for n in names if where == n[0] or where.startswith(f"{n[0]}.")]
            if not fitting:
                break
            name, key, node = max(fitting, key=lambda n: len(n[0]))
            line, where = key.start_mark.line, where[len(name) + 1 :]
        return f"{self.file}, line {line + 1}"

    def placed(self, fault: DSServeError) -> DSServeError:
        """``fault`` with the place of the field that it is about."""
        is_ours = fault.param and fault.param.startswith("deployments")
        return type(fault)(f"{self.place(str(fault.param))}: {fault.message}", param=fault.param) if is_ours else fault

    def _find_models(self) -> None:
        for name, deployment in self.deployments.items():
            versions = deployment.get("versions") if isinstance(deployment, dict) else None
            for tag, version in versions.items() if isinstance(versions, dict) else ():
                model = version.get("model") if isinstance(version, dict) else None
                if isinstance(model, str) and model:
                    try:
                        path = self.file.resolve().parent / Path(model).expanduser()
                        version["model"] = str(path.resolve()) if path.exists() else model
                    except (OSError, RuntimeError) as fault:  # too long a name; no such user's home
                        place = self.place(f"deployments.{name}.versions.{tag}.model")
                        raise InvalidRequest(f"{place}: the model {model!r} cannot be looked for ({fault})") from None


def stamp(file: str | Path) -> tuple[int, int] | None:
    """Differs once a file was written; None while there is none."""
    try:
        found = Path(file).expanduser().stat()
    except (OSError, RuntimeError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size


def watch(apply: Callable[[], object], file: str | Path, say: Callable[[str], object] = print) -> None:
    """Call ``apply`` now, even if there is no file, and whenever ``file`` was written, for ever; what goes wrong is
    said, and tried again then."""
    seen: object = ()
    while True:
        if (now := stamp(file)) != seen and (now or seen == ()):
            try:
                apply()
            except DSServeError as fault:
                say(fault.message)
            except Exception as fault:
                say(f"{type(fault).__name__}: {fault}")
        seen = now
        time.sleep(LOOK_S)


def to_yaml(deployments: Mapping[str, Any]) -> str:
    return yaml.safe_dump(
        {"apiVersion": API_VERSION, "deployments": deployments}, sort_keys=False, allow_unicode=True, width=120
    )


class _Loader(yaml.SafeLoader):
    """Names are texts and stand once; a date is a text, for JSON has none."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Raises `ConstructorError` too for what only looks like a number or a date: ``0x_`` is one to YAML."""
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, ValueError):
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value!r} is no {kind}: write a text in quotes", node.start_mark
            ) from None


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    loader.flatten_mapping(node)  # YAML's own << merges
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(
                None, None, f"the name {key!r} is no text: write it in quotes", key_node.start_mark
            )
        if key in found:
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands here twice", key_node.start_mark)
        found[key] = loader.construct_object(value_node, deep=True)
    return found


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
