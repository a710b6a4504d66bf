// Causal edits of units while one waits: classes, and voxels, before and after.
import { address, ask, turns } from './net.js';
import { choose, clip, h, number, says, table } from './dom.js';
import { exports } from './export.js';
import { unitAddress } from './exemplars.js';
import { mapOf } from './explorer.js';
import { patchPicker } from './patches.js';
import { canvasFigure, drawSmall } from './small.js';
import { bars, COLOURS, s, text } from './svg.js';
import { picker, sums, withoutLive } from './view_picture.js';

const turn = turns();
const HOWS = [['zero', 'remove (code 0)'], ['scale', 'scale by'], ['clamp', 'set to × its largest'], ['set', 'set to the code']];

export async function show(run, words, place) {
  const newest = turn();
  if (!run.live || !run.kinds.length) { withoutLive(place, 'Edits'); return; }
  const kind = run.kinds.find((k) => k.kind === words.get('kind')) || run.kinds[0];
  const state = { image: words.get('image') ?? '', picture: words.get('picture') ?? '', kind: kind.kind,
    hook: run.hooks.includes(words.get('hook')) ? words.get('hook') : run.hooks.at(-2) || run.hooks[0], units: words.get('units') ?? words.get('unit') ?? '',
    how: HOWS.some(([key]) => key === words.get('how')) ? words.get('how') : 'zero', value: words.get('value') ?? '1', patches: words.get('patches') ?? '',
    subject: run.subjects.includes(words.get('subject')) ? words.get('subject') : run.subjects[0] };
  const go = (change) => { location.hash = address('#edits', { ...state, ...change }); };
  if (state.image === '' && state.picture === '') { ask('/api/warm', { edits: 1 }).catch(() => null); await picker(run, words, place, (pick) => go({ patches: '', ...pick }), newest, 'Edits: choose a picture'); return; }
  let found;
  place.classList.add('working');
  try { found = await ask('/api/picture', { image: state.image, picture: state.picture, kind: state.kind, hook: state.hook }); } catch (error) {
    if (newest()) place.replaceChildren(h('h2', { tabIndex: -1 }, 'Edits'), says(error.message, error.command), h('a', { class: 'button', href: '#edits' }, 'choose a picture'));
    return;
  } finally { place.classList.remove('working'); }
  if (!newest()) return;
  const top = sums(found, new Set()).slice(0, 12);
  if (!state.units && top.length) state.units = String(top[0][0]);
  const chosen = new Set(state.patches ? state.patches.split(',').map(Number) : []);
  const answer = h('div', { 'aria-live': 'polite' }), voxels = h('div', {});
  const value = h('input', { type: 'number', step: 'any', value: state.value, size: 6, 'aria-label': 'value', id: 'edit-value', onchange: (event) => { state.value = event.target.value || '0'; redraw(); } });
  const slider = h('input', { type: 'range', min: '-2', max: '4', step: '0.1', value: state.value, 'aria-label': 'strength', id: 'edit-strength', oninput: (event) => { state.value = value.value = event.target.value; redraw(); } });
  const strength = h('span', { class: 'inline' }, slider, value);
  strength.hidden = state.how === 'zero';
  const redraw = () => {
    state.patches = [...chosen].sort((a, b) => a - b).join(',');
    history.replaceState(null, '', address('#edits', state).replaceAll('%2C', ','));
    strength.hidden = state.how === 'zero';
    apply(run, state, kind, answer, voxels, redraw, { shown: found.shown, grid: found.grid, chosen });
  };
  const heat = found.grid ? heatOf(found, state.units) : null;
  const name = found.id === undefined ? 'your picture' : found.id;
  place.replaceChildren(
    h('div', { class: 'heading' }, h('h2', { tabIndex: -1 }, 'Edits', h('span', { class: 'soft' }, ` ${clip(name, 80)}`)), h('a', { class: 'button', href: address('#edits', { ...state, image: '', picture: '', patches: '' }) }, 'another picture')),
    h('div', { class: 'thirds' },
      h('div', {},
        h('div', { class: 'toolbar' }, choose('Tokens', run.kinds.map((k) => [k.kind, k.kind]), state.kind, (v) => go({ kind: v, units: '', patches: '' })),
          choose('Layer', run.hooks.map((hook, i) => [hook, run.labels[i]]), state.hook, (v) => go({ hook: v, units: '' }), { id: 'edit-layer' })),
        h('form', { class: 'toolbar', onsubmit: (event) => { event.preventDefault(); go({ units: new FormData(event.target).get('units').replace(/[^0-9,]/g, '') }); } },
          h('label', {}, 'Units ', h('input', { name: 'units', value: state.units, size: 12, id: 'edit-units', required: '', 'aria-label': 'numbers of units, with commas between them' })), h('button', {}, 'take'),
          state.units && !state.units.includes(',') ? h('a', { class: 'button', href: unitAddress({ kind: state.kind, hook: state.hook, unit: state.units }) }, 'its page') : null),
        h('div', { class: 'toolbar' }, choose('Do', HOWS, state.how, (v) => { state.how = v; redraw(); }, { id: 'edit-how' }), strength),
        patchPicker(found.shown, found.grid, chosen, redraw, name, heat),
        h('h3', {}, 'Strongest here'), h('div', { class: 'chips' }, top.map(([unit, sum]) => h('button', { type: 'button', class: 'chip', 'aria-pressed': String(state.units === String(unit)), onclick: () => go({ units: String(unit) }) }, String(unit), h('small', {}, number(sum, 1)))))),
      answer, voxels));
  redraw();
}

function heatOf(found, units) {
  const wanted = new Set(units.split(',').map(Number));
  return found.units.map((row, t) => row.reduce((sum, unit, k) => sum + (wanted.has(unit) ? found.values[t][k] : 0), 0));
}

const CASES = { before: ['before', COLOURS[6]], after: ['after', COLOURS[1]], matched: ['matched units', COLOURS[3]], rebuilt: ['reconstruction only', COLOURS[4]] };

function classChart(found) {
  const shown = Object.keys(CASES).filter((key) => found.cases.includes(key));
  const bar = 11, line = bar * shown.length + 8, width = 420, left = 76, height = found.classes.length * line + 26;
  const out = s('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', class: 'chart' });
  const x = (p) => left + (width - left - 42) * p;
  let at = 4;
  for (const key of shown) {
    out.append(s('rect', { x: at, y: 3, width: 10, height: 10, fill: CASES[key][1] }), text(at + 14, 12, CASES[key][0]));
    at += 26 + 6.2 * CASES[key][0].length;
  }
  found.classes.forEach((row, i) => {
    const y = 22 + i * line;
    out.append(text(left - 6, y + line / 2, row.name.length > 12 ? `${row.name.slice(0, 11)}…` : row.name, { 'text-anchor': 'end', fill: '#1b2026' }));
    shown.forEach((key, j) => {
      out.append(s('rect', { x: x(0), y: y + 2 + bar * j, width: Math.max(1, x(row[key]) - x(0)), height: bar - 2, fill: CASES[key][1] }, s('title', {}, `${row.name}, ${CASES[key][0]}: ${row[key].toFixed(4)}`)),
        text(x(row[key]) + 5, y + 10 + bar * j, row[key].toFixed(3), { 'font-size': 9.5 }));
    });
  });
  out.append(s('line', { x1: x(0), x2: x(0), y1: 20, y2: height - 4, stroke: '#9aa4ad' }));
  return out;
}

// The picture twice, patches coloured by their likeliest class; the first class is none.
function segmentationChart(found, picture, grid, chosen) {
  const size = 180, gap = 16, { names } = found.segmentation, cell = size / grid;
  const colour = (c) => COLOURS[(c - 1) % COLOURS.length];
  const seen = names.map((_, c) => c).filter((c) => c && (found.segmentation.before.includes(c) || found.segmentation.after.includes(c)));
  const rows = Math.ceil(seen.length / 5);
  const out = s('svg', { viewBox: `0 0 ${2 * size + gap + 4} ${size + 24 + 18 * rows}`, role: 'img', class: 'chart' });
  ['before', 'after'].forEach((key, i) => {
    const left = 2 + i * (size + gap);
    out.append(text(left, 12, CASES[key][0], { fill: '#1b2026', 'font-weight': 600 }), s('image', { x: left, y: 18, width: size, height: size, href: picture }));
    found.segmentation[key].forEach((c, t) => {
      const place = { x: left + (t % grid) * cell, y: 18 + Math.floor(t / grid) * cell, width: cell, height: cell };
      if (c) out.append(s('rect', { ...place, fill: colour(c), opacity: 0.62 }, s('title', {}, names[c])));
      if (i && chosen.has(t)) out.append(s('rect', { ...place, fill: 'none', stroke: '#fff', 'stroke-width': 1.5 }));
    });
  });
  seen.forEach((c, i) => {
    const left = 2 + (i % 5) * 74, top = size + 26 + 18 * Math.floor(i / 5);
    out.append(s('rect', { x: left, y: top, width: 10, height: 10, fill: colour(c) }), text(left + 14, top + 9, names[c].length > 9 ? `${names[c].slice(0, 8)}…` : names[c]));
  });
  return out;
}

function segmented(found, picture, grid, chosen, title) {
  if (!found.segmentation) return [h('p', { class: 'note' }, 'No segmentation head: make one with ', h('code', {}, 'sbm-jax segmentation-head'), ' and name it with ', h('code', {}, '--head'), '.')];
  if (!grid) return [h('p', { class: 'note' }, 'The segmentation head reads patches; choose patch tokens to see it.')];
  const { names } = found.segmentation;
  const chart = () => segmentationChart(found, picture, grid, chosen);
  const inside = (key, c, on) => found.segmentation[key].reduce((n, x, t) => n + (x === c && (!chosen.size || chosen.has(t) === on)), 0);
  const rows = names.map((name, c) => [name, inside('before', c, true), inside('after', c, true), ...(chosen.size ? [inside('before', c, false), inside('after', c, false)] : [])])
    .filter((row) => row.slice(1).some(Boolean));
  const heads = chosen.size ? ['class', 'chosen, before', 'after', 'others, before', 'after'] : ['class', 'patches, before', 'after'];
  return [h('div', { class: 'heading' }, h('h3', {}, 'What every patch shows'), exports(`${title} segmentation`, chart, () => [heads, ...rows])), chart(), table(heads, rows.map((row) => row.map(String)))];
}

const editTurn = turns();
let waiting = null;
function apply(...what) {
  clearTimeout(waiting);
  waiting = setTimeout(() => now(...what), 60);
}

async function now(run, state, kind, place, voxels, redraw, picture) {
  const newest = editTurn();
  if (!state.units) { place.replaceChildren(says('No unit fires on this picture at this layer; take one by its number.')); return; }
  const mode = kind.modes.includes(run.mode) ? run.mode : kind.modes[0];
  const start = performance.now();
  place.classList.add('working');
  let found;
  try {
    found = await ask('/api/edit', { image: state.image, picture: state.picture, kind: state.kind, hook: state.hook, units: state.units, how: state.how,
      value: state.how === 'zero' ? '0' : state.value, patches: state.kind === 'cls' ? '' : state.patches, subject: state.subject, mode });
  } catch (error) { if (newest()) { place.replaceChildren(says(error.message, error.command)); voxels.replaceChildren(); } return; } finally { place.classList.remove('working'); }
  if (!newest()) return;
  const took = (performance.now() - start) / 1000;
  const title = `edit ${state.how} ${state.hook} units ${state.units}`;
  const chart = () => classChart(found);
  const most = found.codes.length ? Math.max(...found.codes) : 0;
  place.dataset.seconds = took.toFixed(3);
  place.replaceChildren(
    h('div', { class: 'heading' }, h('h3', {}, 'What the model sees'), found.classes.length ? exports(title, chart, () => [['class', ...found.cases], ...found.classes.map((c) => [c.name, ...found.cases.map((key) => c[key])])]) : null),
    found.classes.length ? chart() : says('This backbone has neither a text tower nor a classifier; the embeddings alone are compared.'),
    ...segmented(found, picture.shown, picture.grid, picture.chosen, title),
    table(['', ''], [...found.cases.slice(1).map((key) => [`cosine of the embeddings, before and ${CASES[key][0]}`, found.cosine[key]]), ['largest code here', most],
      ...(found.largest && found.largest.length === 1 ? [['largest code over the probe set', found.largest[0]]] : [])]),
    h('p', { class: 'note' }, `${number(took, 2)} s. On ${state.patches ? `${state.patches.split(',').length} chosen patches` : 'all tokens of the kind'}: x + decode(edited codes) − decode(codes), then the rest of the network. Reconstruction only: the whole reconstruction in place of the tokens, the autoencoder’s own error.${found.controls.length ? ` Matched: ${found.controls.length === 1 ? 'unit' : 'units'} ${found.controls.join(', ')}, as often and as strong.` : ''}`));
  showVoxels(run, state, mode, found, voxels, redraw);
}

async function showVoxels(run, state, mode, found, place, redraw) {
  if (!found.regions) { place.replaceChildren(); return; }
  const title = `change of predicted response, ${state.subject}`;
  const canvas = h('canvas', { class: 'small', role: 'img', 'aria-label': title });
  const regions = () => bars({ rows: found.regions.map((r) => ({ label: r.region, value: r.mean, colour: r.mean < 0 ? '#0072b2' : '#d55e00' })), width: 360 });
  place.replaceChildren(
    h('div', { class: 'heading' }, h('h3', {}, 'What voxels are predicted to do'), exports(title, found.map ? canvasFigure(canvas, title) : regions, () => [['region', 'mean change (sd)', 'voxels'], ...found.regions.map((r) => [r.region, r.mean, r.voxels])])),
    h('div', { class: 'toolbar' }, choose('Subject', run.subjects.map((x) => [x, x]), state.subject, (v) => { state.subject = v; redraw(); })),
    found.map ? canvas : null, h('p', { class: 'note' }, `${found.note}; ${run.modes.find((m) => m.mode === mode).title}, best unit of each voxel, all layers`), h('h3', {}, 'By region'), regions());
  if (found.map) await drawSmall(canvas, state.subject, mapOf(found.map));
}

