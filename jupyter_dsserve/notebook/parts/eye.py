"""Whether anybody can see a panel: scrolled away, folded or in a hidden tab it need not be drawn."""

from __future__ import annotations

from collections.abc import Callable

import anywidget
import traitlets
from IPython.core.getipython import get_ipython

# A panel can be on a page several times: it is seen if one of them is. The whole panel is looked at, of which the eye
# is only a part.
_ESM = """
const views = new WeakMap();

function tell(model) {
  const isSeen = [...views.get(model).values()].some(Boolean);
  if (isSeen !== model.get("is_seen")) {
    model.set("is_seen", isSeen);
    model.save_changes();
  }
}

function render({ model, el }) {
  if (!views.has(model)) views.set(model, new Map());
  const seen = views.get(model);
  const look = (isSeen) => { seen.set(el, isSeen); tell(model); };
  const observer = new IntersectionObserver((found) => look(found[found.length - 1].isIntersecting));
  let waiting;
  const begin = () => {  // as soon as it stands in its panel
    const panel = el.closest(".dsserve-panel");
    if (panel) observer.observe(panel); else waiting = setTimeout(begin, 50);
  };
  begin();
  return () => { clearTimeout(waiting); observer.disconnect(); seen.delete(el); tell(model); };
}

export default { render };
"""


class Eye(anywidget.AnyWidget):
    """``is_seen`` is what the page said last; a page that says nothing has its panels drawn."""

    _esm = _ESM
    is_seen = traitlets.Bool(True).tag(sync=True)

    def __init__(self, on_open: Callable[[], object]) -> None:
        """``on_open`` is called in the kernel's main thread, when the panel comes into view again."""
        super().__init__()
        self._is_running = False  # a cell, while which the kernel does not hear the page
        self.observe(lambda change: on_open() if change["new"] else None, names="is_seen")
        self._shell = get_ipython()
        if self._shell:
            self._shell.events.register("pre_execute", self._begin)
            self._shell.events.register("post_execute", self._end)

    @property
    def may_see(self) -> bool:
        return bool(self.is_seen) or self._is_running

    def _begin(self) -> None:
        self._is_running = True

    def _end(self) -> None:
        self._is_running = False

    def leave(self) -> None:
        """Listen to the kernel's cells no more. Called once."""
        if self._shell:
            self._shell.events.unregister("pre_execute", self._begin)
            self._shell.events.unregister("post_execute", self._end)
