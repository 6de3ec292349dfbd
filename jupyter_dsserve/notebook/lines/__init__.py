"""What ``%dsserve`` understands: each verb once, its options and what it does, a file for each kind as in `verbs`."""

from jupyter_dsserve.notebook.lines.cell import CellLine
from jupyter_dsserve.notebook.lines.files import FileLines
from jupyter_dsserve.notebook.lines.keys import KeyLines
from jupyter_dsserve.notebook.lines.looking import LookingLines
from jupyter_dsserve.notebook.lines.traffic import TrafficLines
from jupyter_dsserve.notebook.lines.trying import TryingLines
from jupyter_dsserve.notebook.lines.versions import VersionLines


class Lines(VersionLines, TrafficLines, LookingLines, FileLines, KeyLines, TryingLines, CellLine):
    """Each verb is a method named after it; `ask` is the cell's."""
