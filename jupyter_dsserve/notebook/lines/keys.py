"""The line that makes API keys and revokes them."""

from __future__ import annotations

from IPython.core.error import UsageError
from IPython.core.magic_arguments import argument, magic_arguments

from jupyter_dsserve.notebook import session
from jupyter_dsserve.notebook.arguments import parsed
from jupyter_dsserve.notebook.keys import KeyList, ShownKey


class KeyLines:
    """Keys for apps and colleagues."""

    @magic_arguments("dsserve key")
    @argument("action", choices=["create", "list", "revoke"], help="What to do.")
    @argument("name", nargs="?", default="", help="Of create: whose key it is; of revoke: its id.")
    @argument(
        "--scope",
        choices=["infer", "metrics", "admin"],
        default="infer",
        help="infer only asks models, metrics only reads /metrics; admin does all.",
    )
    @argument("--deployments", help="Those it may ask, such as demo,other; all unless told.")
    @argument("--rate", type=float, help="Calls a second; more get 429. 0 takes any number, as in all limits here.")
    @argument("--burst", type=int, help="Calls at once before the rate holds; 0 is a second's worth.")
    @argument("--tokens-per-min", type=int, help="Of prompts and answers together.")
    @argument("--concurrency", type=int, help="Calls that run at once.")
    @argument("--priority", type=int, help="0 to 100: none of its requests goes before that; lower goes first.")
    @argument("--label", help="For the rules of a policy: --rule X-DSServe-Key-Label=LABEL:VERSION.")
    @argument("--ttl", dest="ttl_s", type=float, help="It ends after so many seconds.")
    def key(self, line: str) -> ShownKey | KeyList:
        """Make an API key for an app or a colleague, list those there are, or revoke one."""
        given = vars(parsed(self.key, line))
        action, name = given.pop("action"), given.pop("name")
        client = session.client()
        if action == "list":
            return client.keys()
        if not name:
            needed = "say whose it is, such as app" if action == "create" else "name its id; key list has it"
            raise UsageError(f"%dsserve key {action}: {needed}")
        if action == "revoke":
            return client.revoke(name)
        if names := given.pop("deployments"):
            given["deployments"] = names.split(",")
        made = client.key(name, **given)
        return ShownKey(made, client.url)
