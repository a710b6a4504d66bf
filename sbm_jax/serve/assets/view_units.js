// Search over units: by concept, region, layer and kind.
import { address, ask, turns } from './net.js';
import { choose, h, number, percent, plural, says } from './dom.js';
import { exports } from './export.js';
import { gallerySvg, unitCard } from './exemplars.js';

const turn = turns();
const ORDERS = [['voxels', 'voxels won'], ['score', 'similarity'], ['count', 'exemplars named'], ['rate', 'firing rate'], ['unit', 'number']];

function defaults(run, words) {
  const kind = run.kinds.find((k) => k.kind === words.get('kind')) || run.kinds.find((k) => k.modes.includes(run.mode)) || run.kinds[0];
  const judge = run.judges.find((j) => j.judge === words.get('judge')) || run.judges[0];
  return {
    kind: kind.kind, mode: kind.modes.includes(words.get('mode')) ? words.get('mode') : (kind.modes.includes(run.mode) ? run.mode : kind.modes[0]),
    judge: judge ? judge.judge : '', concept: judge && judge.concepts.includes(words.get('concept')) ? words.get('concept') : '',
    layer: words.get('layer') ?? '', roi: words.get('roi') ?? '', subject: words.get('subject') ?? '', why: words.get('why') ?? '',
    ranking: words.get('ranking') === 'mean' ? 'mean' : 'contrast', order: ORDERS.some(([key]) => key === words.get('order')) ? words.get('order') : 'voxels', start: words.get('start') ?? '',
  };
}

export async function show(run, words, place) {
  const newest = turn();
  if (!run.kinds.length) { place.replaceChildren(says('This run has no dictionaries: none of its kinds of features is a code of an autoencoder.')); return; }
  const state = defaults(run, words);
  const go = (change) => {
    const next = { ...state, start: '', ...change };
    if (change.kind) next.mode = '';
    if (change.judge !== undefined) next.concept = '';
    location.hash = address('#units', next);
  };
  const kind = run.kinds.find((k) => k.kind === state.kind);
  const judge = run.judges.find((j) => j.judge === state.judge);
  const results = h('div', { class: 'results', 'aria-live': 'polite' }, h('p', { class: 'note' }, 'searching…'));
  const regions = run.regions.filter((r) => !state.subject || r.subjects.includes(state.subject));
  place.replaceChildren(
    h('h2', { tabIndex: -1 }, 'Units'),
    h('div', { class: 'toolbar' },
      judge && choose('Concept', [['', 'any'], ...judge.concepts.map((c) => [c, c])], state.concept, (v) => go({ concept: v, ...(v && state.order === 'voxels' && judge.judge !== 'follows' ? { order: 'count' } : {}) }), { id: 'units-concept' }),
      run.judges.length > 0 && choose('named by', run.judges.map((j) => [j.judge, j.judge]), state.judge, (v) => go({ judge: v }), { id: 'units-judge' }),
      regions.length > 0 && choose('Region', [['', 'any'], ...regions.map((r) => [r.name, r.title])], state.roi, (v) => go({ roi: v, order: v ? 'score' : 'voxels' }), { id: 'units-roi' }),
      state.roi && choose('ranked by', [['contrast', 'contrast'], ['mean', 'mean']], state.ranking, (v) => go({ ranking: v })),
      state.roi && choose('of', [['', 'all subjects'], ...run.subjects.map((x) => [x, x])], state.subject, (v) => go({ subject: v }))),
    h('div', { class: 'toolbar' },
      choose('Tokens', run.kinds.map((k) => [k.kind, k.kind]), state.kind, (v) => go({ kind: v })),
      kind.modes.length > 1 && choose('Scores of', kind.modes.map((m) => [m, run.modes.find((x) => x.mode === m).title]), state.mode, (v) => go({ mode: v })),
      choose('Layer', [['', 'all'], ...run.labels.map((label, i) => [i, label])], state.layer, (v) => go({ layer: v }), { id: 'units-layer' }),
      !run.missing.some((m) => m.store === 'exemplars') && choose('Asked for by', [['', 'anyone'], [1, 'voxels'], [2, 'regions'], [4, 'the user'], [8, 'chance (controls)']], state.why, (v) => go({ why: v })),
      choose('Order', ORDERS, state.order, (v) => go({ order: v })),
      h('form', { class: 'inline', onsubmit: (event) => { event.preventDefault(); openUnit(run, state, new FormData(event.target)); } },
        h('label', {}, 'Open unit ', h('input', { name: 'unit', inputMode: 'numeric', size: 5, pattern: '[0-9]+', 'aria-label': 'number of a unit of the chosen layer', required: '' })), h('button', {}, 'open'))),
    judge && judge.about ? h('p', { class: 'note' }, `${judge.judge}: ${judge.about}`) : null,
    results);
  try {
    const found = await ask('/api/units', state);
    if (!newest()) return;
    results.replaceChildren(...list(run, state, found, go));
  } catch (error) { if (newest()) results.replaceChildren(says(error.message, error.command)); }
}

function openUnit(run, state, form) {
  const hook = run.hooks[Number(state.layer || 0)];
  location.hash = address('#unit', { kind: state.kind, hook, unit: form.get('unit') });
}

function list(run, state, found, go) {
  const end = found.start + found.units.length;
  const title = ['units', state.concept, state.roi, state.layer && `layer ${run.labels[Number(state.layer)]}`].filter(Boolean).join(' ');
  const csv = h('a', { class: 'button', href: address('/csv/units', state), download: '' }, 'CSV');
  const rows = found.units.slice(0, 12).map((u) => ({ title: `${u.hook} unit ${u.unit}  ${Object.values(u.names).join(', ')}`, list: u.exemplars }));
  return [
    h('div', { class: 'heading' }, h('p', { class: 'note' }, found.total ? `${found.start + 1} to ${end} of ${number(found.total, 0)} units` : 'no unit fits'),
      exports(title, rows.length ? () => gallerySvg(rows, 6) : null, null), csv),
    h('div', { class: 'grid' }, found.units.map((unit) => unitCard(unit, [
      `best of ${plural(unit.voxels, 'voxel')}`, unit.held_out !== null ? `held out ${number(unit.held_out)}` : null,
      unit.roi_score !== undefined ? `region ${number(unit.roi_score)}` : `highest r ${number(unit.best)}`,
      unit.image_rate !== null ? `fires on ${percent(unit.image_rate)}` : null]))),
    h('div', { class: 'heading' },
      found.start > 0 ? h('button', { type: 'button', onclick: () => go({ start: Math.max(0, found.start - found.page) }) }, 'previous') : null,
      end < found.total ? h('button', { type: 'button', onclick: () => go({ start: end }) }, 'next') : null),
  ];
}
