// The cortex view: the viewer on the left, what a vertex holds on the right.
import { address, ask } from './net.js';
import { choose, h, says, table } from './dom.js';
import { bareCortex, Explorer, subjectOf } from './explorer.js';
import { letVoxelGo, showVoxel } from './voxel.js';

let viewer = null;
const unplaced = { subject: '', mode: '' }; // what is looked at where there is no cortex

export async function show(run, changed) {
  if (viewer) {
    const told = location.hash.startsWith('#cortex?');
    if (!changed && told) return; // the viewer follows its own addresses
    if (told) viewer.readAddress(); else viewer.fromAddress = true;
    viewer.update();
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
  Object.assign(unplaced, { subject: run.subjects.includes(words.get('subject')) ? words.get('subject') : run.subjects[0], mode: run.modes.some((m) => m.mode === words.get('mode')) ? words.get('mode') : run.mode });
  if (words.has('voxel')) await showVoxel(panel, run, { ...unplaced, voxel: words.get('voxel') });
  else await start(run, panel);
}

let started = 0;
async function start(run, panel) {
  const mine = ++started;
  letVoxelGo();
  const { subject, mode } = viewer ? { subject: viewer.subject.name, mode: viewer.state.mode } : unplaced;
  const title = run.modes.find((m) => m.mode === mode).title;
  const go = (change) => { location.hash = address('#cortex', { ...unplaced, ...change }); };
  panel.replaceChildren(h('h2', {}, viewer ? 'Click a vertex' : 'Choose a voxel'), viewer ? '' : h('div', { class: 'toolbar' },
    choose('Subject', run.subjects.map((x) => [x, x]), subject, (v) => go({ subject: v })), choose('Features', run.modes.map((m) => [m.mode, m.title]), mode, (v) => go({ mode: v }))), h('p', { class: 'note' }, 'Its best units, scores beside their null and ceiling, layer profile and exemplars open here.'));
  try {
    const rows = await ask('/api/top_voxels', { subject, mode });
    if (mine !== started || (viewer && viewer.state.pin)) return;
    panel.append(h('h3', {}, `Best predicted voxels, ${subject}, ${title}`), table(['voxel', 'hemisphere', 'vertex', run.scored ? 'held-out r' : 'in-sample r'],
      rows.slice(0, 15).map((row) => [open(row, run, panel, subject, mode, go), row.hemi || '–', row.vertex >= 0 ? String(row.vertex) : '–', row.score])));
  } catch (error) { panel.append(says(error.message, error.command)); }
}

function open(row, run, panel, subject, mode, go) {
  return h('button', { type: 'button', class: 'link', onclick: () => {
    if (viewer && row.side) {
      viewer.state.pin = { side: row.side, vertex: row.at };
      viewer.update();
    } else if (viewer) showVoxel(panel, run, { subject, mode, voxel: row.voxel }); // no vertex lies near this voxel
    else go({ voxel: row.voxel });
  } }, String(row.voxel));
}
