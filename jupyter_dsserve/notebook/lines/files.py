"""Lines that make the fleet of a file, and a file of it."""

from __future__ import annotations

from IPython.core.error import UsageError
from IPython.core.magic_arguments import argument, magic_arguments
from IPython.display import DisplayHandle, display

from jupyter_dsserve.manifest import watch
from jupyter_dsserve.notebook import session
from jupyter_dsserve.notebook.arguments import parsed, pinned
from jupyter_dsserve.notebook.views import Applied
from jupyter_dsserve.protocol.export import Exported


class Moving:
    """An `Applied` that moves on in its place."""

    def __init__(self) -> None:
        self._handle: DisplayHandle | None = None

    def __call__(self, applied: Applied) -> None:
        if self._handle is None:
            self._handle = display(applied, display_id=True)
        else:
            self._handle.update(applied)


class FileLines:
    """Deployments files, and ONNX."""

    @magic_arguments("dsserve apply")
    @argument("file", help="A deployments file, such as deployments.yaml.")
    @argument("--dry-run", action="store_true", help="Only show what would be done.")
    @argument("--prune", action="store_true", help="Delete what the file does not name.")
    @argument("--watch", action="store_true", help="Apply it again whenever it was written, until interrupted.")
    def apply(self, line: str) -> Applied | None:
        """Make the fleet what a deployments file says: load, route, then unload; nothing is lost."""
        given = vars(parsed(self.apply, line))
        file = given.pop("file")
        if not given.pop("watch"):
            return session.client().apply(file, on_progress=Moving(), **given)
        watch(lambda: session.client().apply(file, on_progress=Moving(), **given), file)
        return None

    @magic_arguments("dsserve export")
    @argument("file", nargs="?", default="", help="Where to write the deployments file; none shows it. Or: onnx.")
    @argument("model", nargs="?", default="", help="Of onnx: the version, such as emb@v1.")
    @argument("--out", help="Of onnx: the directory to make.")
    @argument("--tolerance", type=float, default=1e-4, help="Of onnx: how far an answer may be from torch's, a share.")
    @argument("--allow-code", action="store_true", help="Of onnx: load a *.pt2, which can run code from the file.")
    def export(self, line: str) -> Exported | None:
        """Write the deployments file of what is served; or as ONNX what a version serves."""
        given = parsed(self.export, line)
        file = given.file
        if file == "onnx":
            if not given.out:
                raise UsageError("%dsserve export onnx: name the directory to make, such as --out emb-onnx")
            if not given.model:
                raise UsageError("%dsserve export onnx: name the version, such as emb@v1")
            name, version = pinned("export onnx", given.model, session.versions_of)
            return session.client().export_onnx(
                name, version, given.out, tolerance=given.tolerance, allow_code=given.allow_code
            )
        if given.model or given.out:
            raise UsageError(f"%dsserve export {file}: only onnx takes a version and --out")
        text = session.client().export(file)
        print(f"written to {file}" if file else text)
        return None
