"""``%%dsserve NAME``: the cell is the prompt."""

from __future__ import annotations

from IPython.core.error import UsageError
from IPython.core.magic import Magics
from IPython.core.magic_arguments import argument, magic_arguments

from jupyter_dsserve.notebook import session
from jupyter_dsserve.notebook.arguments import form, models_asked, parsed
from jupyter_dsserve.notebook.asking import Part, prompt_of, side_by_side, streamed
from jupyter_dsserve.notebook.views import Answer


class CellLine(Magics):
    """The first line of a cell that asks."""

    @magic_arguments("dsserve")
    @argument("name", help="A deployment, or one version of it: demo@v2.")
    @argument("--max-tokens", type=int, default=128, help="The longest answer.")
    @argument("--temperature", type=float, help="0 takes the likeliest token; 1 is the default.")
    @argument("--top-p", type=float, help="Only the likeliest tokens that make up this probability.")
    @argument("--top-k", type=int, help="Only this many of the likeliest tokens; 0 is all.")
    @argument("--seed", type=int, help="The same seed and prompt give the same answer.")
    @argument("--stop", action="append", help="Ends the answer; may be given several times.")
    @argument("--user", help="Keeps their version while the weights stand.")
    @argument("--chat", action="store_true", help="The cell is a message, or turns that begin with user: or assistant:")
    @argument("--system", default="", help="Of a chat: what goes before it, in quotes.")
    @argument("--compare", nargs=2, metavar="VERSION", help="Ask two versions; their answers stand side by side.")
    @argument("--n", type=int, default=1, help="So many answers, side by side; with --seed each has the next one.")
    @argument("--save", default="", metavar="NAME", help="The variable that gets the answer (of several: a list).")
    @argument("--regex", help="The form of the answer: a regular expression, in quotes.")
    @argument("--choice", action="append", help="The answer is one of these; give it several times.")
    @argument("--json", default=None, help="The answer fits this JSON schema: a file's name.")
    def ask(self, line: str, cell: str) -> None:
        """Ask a deployment; the answer streams into the output, and interrupting the cell cancels it."""
        given = vars(parsed(self.ask, line))
        name, save = given.pop("name"), given.pop("save")
        compare, num = given.pop("compare"), given.pop("n")
        models = models_asked(name, compare, num)
        if save and not save.isidentifier():
            raise UsageError(f"--save {save}: write the name of a variable")
        given["structured_outputs"] = form(given.pop("regex"), given.pop("choice"), given.pop("json"))
        prompt = prompt_of(cell, given.pop("chat"), given.pop("system"))
        answers: Answer | list[Answer]
        if len(models) == 1:
            answers = streamed(session.client(), name, prompt, given)
        else:
            seed = given.pop("seed")
            step = 0 if compare else 1
            options = [{**given, "seed": None if seed is None else seed + step * i} for i in range(len(models))]
            parts = [Part(model, model.partition("@")[2] or f"{i}") for i, model in enumerate(models, start=1)]
            answers = side_by_side(session.session().make_client, parts, prompt, options)
        if save:
            assert self.shell
            self.shell.user_ns[save] = answers
