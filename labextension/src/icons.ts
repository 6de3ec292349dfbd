import { LabIcon } from '@jupyterlab/ui-components';

/** One line that forks into two of different weight: a route. */
export const serveIcon = new LabIcon({
  name: 'jupyter-dsserve:serve',
  svgstr: `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24">
  <g class="jp-icon3 jp-icon-selectable" fill="none" stroke="#616161" stroke-linecap="round">
    <path class="jp-icon3-stroke" stroke-width="3.2" d="M3 12h5c4 0 4-6 8-6h5"/>
    <path class="jp-icon3-stroke" stroke-width="1.6" d="M8 12c4 0 4 6 8 6h5"/>
  </g>
</svg>`
});
