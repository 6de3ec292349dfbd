"""What the page does for a panel: it tells whether anybody can see it (scrolled away, folded or in a hidden tab it need
not be drawn) and whether it is narrow, and screen readers what each of its fields is."""

from __future__ import annotations

from collections.abc import Callable

import anywidget
import traitlets
from IPython.core.getipython import get_ipython

from jupyter_dsserve.notebook.figures import COLUMNS, NARROW_COLUMNS, height_px

# A panel can be on a page several times: it is seen, or narrow, if one of them is. The whole panel is looked at, of
# which the eye is only a part.
_ESM = """
const NARROW_PX = 600;
const views = new WeakMap();

function tell(model) {
  const all = [...views.get(model).values()];
  const told = { is_seen: all.some((view) => view.isSeen) };
  const widths = all.map((view) => view.panel.clientWidth).filter(Boolean);  // in a hidden tab it has none
  if (widths.length) told.is_narrow = widths.some((width) => width < NARROW_PX);
  const news = Object.entries(told).filter(([name, value]) => value !== model.get(name));
  if (!news.length) return;
  model.set(Object.fromEntries(news));
  model.save_changes();
}

// ipywidgets names a field by its description alone; what is none but has a tooltip, and a slider at all, we name.
function name(panel) {
  for (const field of panel.querySelectorAll("select, input, .noUi-handle, .widget-html[tabindex]")) {
    const label = field.closest(".jupyter-widgets").querySelector(".widget-label");
    const said = [label?.textContent, label?.title || field.title].filter((each) => each && each !== "null").join(": ");
    if (field.getAttribute("aria-label") !== said) field.setAttribute("aria-label", said);
    if (field.matches("div.widget-html")) field.setAttribute("role", "region");
  }
}

function render({ model, el }) {
  if (!views.has(model)) views.set(model, new Map());
  const view = { isSeen: false, panel: el };
  const observer = new IntersectionObserver((found) => {
    view.isSeen = found[found.length - 1].isIntersecting;
    tell(model);
  });
  let wide = 0;
  const ruler = new ResizeObserver(() => {
    if (view.panel.clientWidth === wide) return;
    wide = view.panel.clientWidth;
    tell(model);
    fit();
  });
  const fit = () => {
    view.panel.classList.toggle("dsserve-narrow", model.get("is_narrow"));
    window.dispatchEvent(new Event("resize"));  // all that plotly listens to
  };
  model.on("change:is_narrow", fit);
  const namer = new MutationObserver(() => name(el.closest(".dsserve-panel") ?? el));
  let waiting;
  const begin = () => {  // as soon as it stands in its panel
    const panel = el.closest(".dsserve-panel");
    if (!panel) { waiting = setTimeout(begin, 50); return; }
    view.panel = panel;
    views.get(model).set(el, view);
    observer.observe(panel);
    ruler.observe(panel);
    namer.observe(panel, { childList: true, subtree: true, attributeFilter: ["title"] });
    name(panel);
  };
  begin();
  return () => {
    clearTimeout(waiting);
    for (const each of [observer, ruler, namer]) each.disconnect();
    model.off("change:is_narrow", fit);
    views.get(model).delete(el);
    tell(model);
  };
}

export default { render };
"""

# The height of the plots; and ipywidgets puts a red sign at each of some forty widgets when their kernel is gone.
_CSS = f"""
.dsserve-panel .js-plotly-plot {{ height: {height_px(COLUMNS)}px; }}
.dsserve-panel.dsserve-narrow .js-plotly-plot {{ height: {height_px(NARROW_COLUMNS)}px; }}
.dsserve-panel .jupyter-widgets-disconnected::before {{ content: none; }}
.dsserve-panel.jupyter-widgets-disconnected::before {{
  content: "✕ The kernel of this panel is gone: run the cell again.";
  font: inherit;
  color: inherit;
}}
"""


class Eye(anywidget.AnyWidget):
    """``is_seen`` and ``is_narrow`` are what the page said last; a page that says nothing has its panels drawn, and
    wide."""

    _esm = _ESM
    _css = _CSS
    is_seen = traitlets.Bool(True).tag(sync=True)
    is_narrow = traitlets.Bool(False).tag(sync=True)

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
