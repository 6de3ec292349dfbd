"""`LiveFigure`: plotly's widget, without what it loses on a page that is slow, or loaded again."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import ipywidgets as w
import plotly
import plotly.graph_objects as go
import traitlets

# A widget whose code is not there within two seconds is told nothing more (anywidget), and plotly has five megabytes,
# for which a page on a busy machine takes longer. So this is there at once, keeps what it is told meanwhile, and tells
# it to plotly's own. That goes to a page once, and is read once, not with each figure: a page forgets no code.
_ESM = """
const TOLD = ["addTraces", "deleteTraces", "moveTraces", "restyle", "relayout", "update", "animate",
  "removeLayoutProps", "removeTraceProps"].map((name) => `_py2js_${name}`);

async function read(text) {
  const url = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
  try {
    return (await import(url)).default;
  } finally {
    URL.revokeObjectURL(url);
  }
}

async function plotly(model) {
  const known = (globalThis[Symbol.for("jupyter_dsserve.plotly")] ??= new Map());
  const code = await model.widget_manager.get_model(model.get("_code").replace("IPY_MODEL_", ""));
  const version = code.get("version");
  if (!known.has(version)) {
    const reading = read(code.get("text"));
    reading.catch(() => known.delete(version));
    known.set(version, reading);
  }
  return known.get(version);
}

export default () => {
  let figure, isThere;

  function initialize({ model }) {
    const missed = [];
    const keep = Object.fromEntries(TOLD.map((name) => [name, () => missed.push([name, model.get(name)])]));
    for (const name of TOLD) model.on(`change:${name}`, keep[name]);
    isThere = plotly(model).then((make) => {
      for (const name of TOLD) model.off(`change:${name}`, keep[name]);
      const listeners = new Map();  // by what they listen to; only those that there are before any view
      let name, value;  // of what was missed, what is told now
      const seen = { ...model, get: (asked) => (asked === name ? value : model.get(asked)) };
      seen.on = (event, listener) => { listeners.set(event, listener); model.on(event, listener); };
      figure = make();
      figure.initialize({ model: seen });
      seen.on = model.on;
      for ([name, value] of missed) listeners.get(`change:${name}`)?.();
      name = undefined;
    });
  }

  async function render(view) {
    await isThere;
    return figure.render(view);
  }

  return { initialize, render };
};
"""

_OURS = ("_widget_data", "_widget_layout")  # which pages change by other messages only


class _Code(w.Widget):  # type: ignore[misc]  # ipywidgets has no types
    """What plotly's widget runs on a page, for all figures of a kernel."""

    text = traitlets.Unicode(str(go.FigureWidget._esm)).tag(sync=True)
    version = traitlets.Unicode(plotly.__version__).tag(sync=True)

    _it: _Code | None = None

    @classmethod
    def it(cls) -> _Code:
        if cls._it is None or cls._it.comm is None:  # somebody closed all widgets
            cls._it = cls()
        return cls._it


class LiveFigure(go.FigureWidget):  # type: ignore[misc]  # plotly has no types
    """Whole on a page that is loaded again, and in a second one: plotly's own would tell it what was there at first."""

    _esm = _ESM
    _code = traitlets.Instance(_Code).tag(sync=True, **w.widget_serialization)

    @traitlets.default("_code")
    def _default_code(self) -> _Code:
        return _Code.it()

    def get_state(self, key: Any = None, drop_defaults: bool = False) -> dict[str, Any]:
        state: dict[str, Any] = super().get_state(key, drop_defaults)
        for name, value in zip(_OURS, (self.__dict__.get("_data"), self.__dict__.get("_layout")), strict=True):
            if name in state and value is not None:  # there is none while it is being made
                state[name] = self.trait_metadata(name, "to_json")(deepcopy(value), self)
        return state

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """A second page tells what it was told when the figure was made, nothing: the first one would go by that."""
        super().set_state({name: value for name, value in sync_data.items() if name not in _OURS})
