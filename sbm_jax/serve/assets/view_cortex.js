// The cortex view: the viewer on the left, what a vertex holds on the right.
import { ask } from './net.js';
import { h, number, says, table } from './dom.js';
import { bareCortex, Explorer, subjectOf } from './explorer.js';
import { showVoxel } from './voxel.js';

let viewer = null;

export async function show(run) {
  if (viewer) {
    if (location.hash.startsWith('#cortex?')) { viewer.readAddress(); viewer.update(); } else { viewer.fromAddress = true; viewer.update(); }
    return;
  }
  const [cortex, ...all] = await Promise.all([bareCortex(), ...run.subjects.map(subjectOf)]);
  const placed = all.filter((subject) => !subject.whyNot);
  const panel = byId('panel');
  if (!placed.length) {
    byId('viewer').replaceChildren(...[...new Set(all.map((one) => one.whyNot))].map((why) => h('p', {}, `No cortex to draw on: ${why}.`)));
    await openVoxelFromAddress(run, panel);
    document.documentElement.dataset.ready = 'yes';
    return;
  }
  byId('views').replaceChildren(...Object.keys(cortex.views).map((name) => h('button', { type: 'button', data: { view: name } }, name)));
  Explorer.prototype.onPin = (place) => (place ? showVoxel(panel, run, place) : start(run, panel));
  viewer = new Explorer({ ...cortex, subjects: placed, run });
}

// Voxels without a place on the cortex are opened by number: #cortex?subject=..&voxel=..
async function openVoxelFromAddress(run, panel) {
  const words = new URLSearchParams(location.hash.split('?')[1] || '');
  if (words.has('voxel')) await showVoxel(panel, run, { subject: words.get('subject') || run.subjects[0], voxel: words.get('voxel'), mode: words.get('mode') || run.mode });
  else await start(run, panel);
}

let started = 0;
async function start(run, panel) {
  const mine = ++started;
  const subject = viewer ? viewer.subject.name : run.subjects[0], mode = viewer ? viewer.state.mode : run.mode;
  const title = run.modes.find((m) => m.mode === mode).title;
  panel.replaceChildren(h('h2', {}, 'Click a vertex'), h('p', { class: 'note' }, 'Its best units, scores beside their null and ceiling, layer profile and exemplars open here.'));
  try {
    const rows = await ask('/api/top_voxels', { subject, mode });
    if (mine !== started || (viewer && viewer.state.pin)) return;
    panel.append(h('h3', {}, `Best predicted voxels, ${subject}, ${title}`), table(['voxel', 'hemisphere', 'vertex', run.scored ? 'held-out r' : 'in-sample r'],
      rows.slice(0, 15).map((row) => [open(run, panel, subject, mode, row), row.hemi || '–', row.vertex >= 0 ? String(row.vertex) : '–', row.score])));
  } catch (error) { panel.append(says(error.message, error.command)); }
}

function open(run, panel, subject, mode, row) {
  return h('button', { type: 'button', class: 'link', onclick: () => {
    if (viewer && row.vertex >= 0 && row.vertex < viewer.cortex.hemis.left.n && row.hemi) {
      viewer.state.pin = { side: row.hemi === 'L' ? 'left' : 'right', vertex: row.vertex };
      viewer.update();
    } else showVoxel(panel, run, { subject, voxel: row.voxel, mode });
  } }, String(row.voxel));
}

export function resized() { if (viewer) viewer.moved(); }
