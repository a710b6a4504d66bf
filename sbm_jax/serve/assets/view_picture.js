// From a picture to the units that some of its patches drive, and to the voxels that those predict.
import { address, ask, send, turns } from './net.js';
import { choose, clip, h, number, plural, says } from './dom.js';
import { exports } from './export.js';
import { gallerySvg, thumbAddress, unitCard } from './exemplars.js';
import { mapOf } from './explorer.js';
import { canvasFigure, drawSmall } from './small.js';
import { patchPicker } from './patches.js';
import { bars } from './svg.js';

const turn = turns();
const TOP = 8;

export function withoutLive(place, title) {
  place.replaceChildren(h('h2', { tabIndex: -1 }, title), says('The server was started with --no-live: nothing is computed. Start `sbm-jax serve` without it for this view.'));
}

export async function show(run, words, place) {
  const newest = turn();
  if (!run.live || !run.kinds.length) { withoutLive(place, 'Picture'); return; }
  const kind = run.kinds.find((k) => k.kind === words.get('kind')) || run.kinds[0];
  const state = { image: words.get('image') ?? '', picture: words.get('picture') ?? '', kind: kind.kind,
    hook: run.hooks.includes(words.get('hook')) ? words.get('hook') : run.hooks.at(-1), patches: words.get('patches') ?? '',
    subject: run.subjects.includes(words.get('subject')) ? words.get('subject') : run.subjects[0] };
  const go = (change) => { location.hash = address('#picture', { ...state, ...change }); };
  if (state.image === '' && state.picture === '') { ask('/api/warm').catch(() => null); await picker(run, words, place, (pick) => go({ patches: '', ...pick }), newest); return; }
  let found;
  place.classList.add('working');
  try { found = await ask('/api/picture', { image: state.image, picture: state.picture, kind: state.kind, hook: state.hook }); } catch (error) {
    if (newest()) place.replaceChildren(h('h2', { tabIndex: -1 }, 'Picture'), says(error.message, error.command), h('a', { class: 'button', href: '#picture' }, 'choose a picture'));
    return;
  } finally { place.classList.remove('working'); }
  if (!newest()) return;
  const units = h('div', { 'aria-live': 'polite' }), voxels = h('div', {});
  const chosen = new Set(state.patches ? state.patches.split(',').map(Number) : []);
  const redraw = () => {
    state.patches = [...chosen].sort((a, b) => a - b).join(',');
    history.replaceState(null, '', address('#picture', state).replaceAll('%2C', ','));
    showUnits(run, state, found, chosen, units);
    showVoxels(run, state, kind, voxels);
  };
  const name = found.id === undefined ? 'your picture' : found.id;
  place.replaceChildren(
    h('div', { class: 'heading' }, h('h2', { tabIndex: -1 }, 'Picture', h('span', { class: 'soft' }, ` ${clip(name, 80)}`)), h('a', { class: 'button', href: '#picture' }, 'another picture'),
      h('a', { class: 'button', href: address('#edits', { image: state.image, picture: state.picture, kind: state.kind, hook: state.hook }) }, 'edit its units')),
    h('div', { class: 'thirds' },
      h('div', {}, h('div', { class: 'toolbar' }, choose('Tokens', run.kinds.map((k) => [k.kind, k.kind]), state.kind, (v) => go({ kind: v, patches: '' })),
        choose('Layer', run.hooks.map((hook, i) => [hook, run.labels[i]]), state.hook, (v) => go({ hook: v }))),
        patchPicker(found.shown, found.grid, chosen, redraw, name),
        found.caption ? h('p', { class: 'note' }, found.caption) : null,
        found.labels && Object.keys(found.labels).length ? h('p', { class: 'note' }, `labels: ${Object.keys(found.labels).join(', ')}`) : null),
      units, voxels));
  redraw();
}

// Codes summed over the chosen patches (all, where none is): [[unit, sum, patches on which it fires]], largest first.
export function sums(found, chosen) {
  const total = new Map();
  found.units.forEach((row, t) => {
    if (chosen.size && found.grid && !chosen.has(t)) return;
    row.forEach((unit, k) => {
      const value = found.values[t][k];
      if (value > 0) { const had = total.get(unit) || [0, 0]; total.set(unit, [had[0] + value, had[1] + 1]); }
    });
  });
  return [...total].map(([unit, [sum, count]]) => [unit, sum, count]).sort((a, b) => b[1] - a[1] || a[0] - b[0]);
}

const unitTurn = turns();
async function showUnits(run, state, found, chosen, place) {
  const newest = unitTurn();
  const all = sums(found, chosen), top = all.slice(0, TOP);
  const which = !found.grid ? 'the CLS token' : chosen.size ? `${chosen.size} chosen ${chosen.size === 1 ? 'patch' : 'patches'}` : 'all patches';
  const title = `units of ${state.hook} on ${which}`;
  const csv = () => [['unit', 'sum of codes', 'tokens on which it fires'], ...all];
  if (!top.length) { place.replaceChildren(h('h3', {}, 'Units'), h('p', { class: 'note' }, 'no unit fires there')); return; }
  try {
    const cards = await ask('/api/cards', { kind: state.kind, hook: state.hook, units: top.map(([unit]) => unit).join(',') });
    if (!newest()) return;
    const by = new Map(cards.map((card) => [card.unit, card]));
    place.replaceChildren(h('div', { class: 'heading' }, h('h3', {}, `Units on ${which}`),
      exports(title, () => gallerySvg(top.map(([unit]) => ({ title: `unit ${unit}  ${Object.values(by.get(unit).names).join(', ')}`, list: by.get(unit).exemplars })), 6), csv)),
    h('p', { class: 'note' }, `codes summed over tokens; ${number(all.length, 0)} units fire`),
    ...top.map(([unit, sum, count]) => unitCard(by.get(unit), [`sum ${number(sum, 2)}`, found.grid ? `on ${count} of ${chosen.size || found.units.length} patches` : null, `best of ${plural(by.get(unit).voxels, 'voxel')}`], 6)));
  } catch (error) { if (newest()) place.replaceChildren(says(error.message, error.command)); }
}

const voxelTurn = turns();
async function showVoxels(run, state, kind, place) {
  const newest = voxelTurn();
  const mode = kind.modes.includes(run.mode) ? run.mode : kind.modes[0];
  const title = `predicted response, ${state.subject}`;
  try {
    const found = await ask('/api/predict', { image: state.image, picture: state.picture, subject: state.subject, mode, patches: state.kind === 'cls' ? '' : state.patches });
    if (!newest()) return;
    const canvas = h('canvas', { class: 'small', role: 'img', 'aria-label': title });
    const regions = () => bars({ rows: found.regions.map((r) => ({ label: r.region, value: r.mean, colour: r.mean < 0 ? '#0072b2' : '#d55e00' })), width: 360 });
    place.replaceChildren(h('div', { class: 'heading' }, h('h3', {}, 'Voxels they predict'),
      exports(title, found.map ? canvasFigure(canvas, title) : regions, () => [['region', 'mean predicted response (sd)', 'voxels'], ...found.regions.map((r) => [r.region, r.mean, r.voxels])])),
    h('div', { class: 'toolbar' }, choose('Subject', run.subjects.map((x) => [x, x]), state.subject, (v) => { state.subject = v; history.replaceState(null, '', address('#picture', state).replaceAll('%2C', ',')); showVoxels(run, state, kind, place); })),
    found.map ? canvas : null, h('p', { class: 'note' }, `${found.note}; ${run.modes.find((m) => m.mode === mode).title}, all layers`), h('h3', {}, 'By region'), regions());
    if (found.map) await drawSmall(canvas, state.subject, mapOf(found.map));
  } catch (error) { if (newest()) place.replaceChildren(h('h3', {}, 'Voxels they predict'), says(error.message, error.command)); }
}

// Choosing ---------------------------------------------------------------------------------------------------------------
export async function picker(run, words, place, choice, newest, title = 'Picture') {
  const search = words.get('search') ?? '', start = words.get('start') ?? '';
  const view = location.hash.slice(1).split('?')[0];
  const trouble = h('div', {});
  const file = h('input', { type: 'file', accept: 'image/png,image/jpeg,image/webp,image/gif,image/bmp', id: 'upload', onchange: async (event) => {
    const [chosen] = event.target.files;
    if (!chosen) return;
    trouble.replaceChildren(h('p', { class: 'note' }, 'sending…'));
    try { choice({ image: '', picture: (await send('/api/upload', {}, chosen)).picture }); } catch (error) { trouble.replaceChildren(says(error.message)); }
  } });
  const found = await ask('/api/images', { search, start });
  if (!newest()) return;
  const end = found.start + found.images.length;
  const turnTo = (at) => { location.hash = address(`#${view}`, { ...Object.fromEntries(words), search, start: at }); };
  place.replaceChildren(h('h2', { tabIndex: -1 }, title),
    h('div', { class: 'toolbar' },
      h('form', { class: 'inline', onsubmit: (event) => { event.preventDefault(); location.hash = address(`#${view}`, { ...Object.fromEntries(words), search: new FormData(event.target).get('search'), start: '' }); } },
        h('label', {}, 'Search id, caption or label ', h('input', { name: 'search', type: 'search', value: search, id: 'picture-search' })), h('button', {}, 'search')),
      h('label', {}, 'or use your own ', file)),
    trouble,
    h('div', { class: 'heading' }, h('p', { class: 'note' }, found.total ? `${found.start + 1} to ${end} of ${number(found.total, 0)} stimuli` : 'no stimulus fits'),
      found.start > 0 ? h('button', { type: 'button', onclick: () => turnTo(Math.max(0, found.start - found.page)) }, 'previous') : null,
      end < found.total ? h('button', { type: 'button', onclick: () => turnTo(end) }, 'next') : null),
    h('div', { class: 'wall pick' }, found.images.map((image) => h('a', { class: 'tile', href: '#', title: `${image.id}${image.caption ? `: ${image.caption}` : ''}`,
      onclick: (event) => { event.preventDefault(); choice({ image: image.row, picture: '', search: '', start: '' }); } },
    h('img', { src: thumbAddress({ source: 'stimuli' }, image.row), alt: image.caption || image.id, loading: 'lazy', decoding: 'async' })))));
}
