"""What a client can ask for: each verb once, as a conversation without I/O (`talk.Talk`), a file for each kind."""

from jupyter_dsserve.notebook.verbs.asking import Asking
from jupyter_dsserve.notebook.verbs.files import Files
from jupyter_dsserve.notebook.verbs.keys import Keys
from jupyter_dsserve.notebook.verbs.traffic import Traffic
from jupyter_dsserve.notebook.verbs.versions import Versions


class Verbs(Versions, Traffic, Files, Keys, Asking):
    """``url`` and ``key`` name a gateway; without them it is the one of this kernel's Jupyter server (see `find`)."""
