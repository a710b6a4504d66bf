// The page of one unit.
import { address, ask, turns } from './net.js';
import { h, number, percent, says, table } from './dom.js';
import { exports } from './export.js';
import { chips, gallerySvg, highlighting, setHighlighting, tile, unitAddress } from './exemplars.js';
import { bars, COLOURS } from './svg.js';
import { smallCortex } from './small.js';

const turn = turns();

export async function show(run, words, place) {
  const newest = turn();
  const key = { kind: words.get('kind'), hook: words.get('hook'), unit: words.get('unit') };
  place.replaceChildren(h('p', { class: 'note' }, 'reading…'));
  let found;
  try { found = await ask('/api/unit', key); } catch (error) {
    if (newest()) place.replaceChildren(h('h2', { tabIndex: -1 }, 'Unit'), says(error.message, error.command));
    return;
  }
  if (newest()) place.replaceChildren(...content(run, found));
}

function neighbour(found, by) {
  return unitAddress({ ...found, unit: found.unit + by });
}

function content(run, found) {
  const name = `${found.kind} ${found.hook} unit ${found.unit}`;
  const list = found.exemplars;
  const mode = found.modes.some((m) => m.mode === run.mode) ? run.mode : found.modes[0].mode;
  const box = h('input', { type: 'checkbox', checked: highlighting(), onchange: (event) => setHighlighting(event.target.checked) });
  return [
    h('div', { class: 'heading' }, h('h2', { tabIndex: -1 }, `${found.hook} · unit ${found.unit}`, h('span', { class: 'soft' }, ` ${found.kind} tokens`)),
      found.unit > 0 ? h('a', { class: 'button', href: neighbour(found, -1) }, '‹ unit') : null,
      h('a', { class: 'button', href: neighbour(found, 1) }, 'unit ›'),
      found.kind === 'patch' || found.kind === 'cls' ? h('a', { class: 'button', href: address('#edits', { kind: found.kind, hook: found.hook, unit: found.unit, ...(list.images.length && !list.folder ? { image: list.images[0] } : {}) }) }, 'edit it') : null),
    h('div', { class: 'chips' }, chips(found.names)),
    h('div', { class: 'split even' },
      h('div', {},
        h('div', { class: 'heading' }, h('h3', {}, `What drives it (${list.images.length})`), list.heat ? h('label', { class: 'note' }, box, ' highlight patches') : null,
          list.images.length ? exports(`${name} exemplars`, () => gallerySvg([{ title: name, list }], 10), () => [['rank', 'picture', 'code'], ...list.images.map((row, i) => [i + 1, row, list.scores?.[i]])]) : null),
        list.images.length ? h('div', { class: 'wall' }, list.images.map((_, i) => tile(list, i))) : says('Nobody asked for this unit’s exemplars.', null),
        h('p', { class: 'note' }, about(run, found))),
      h('div', {}, h('h3', {}, 'Where it lives'), ...lives(run, found, mode), h('h3', {}, 'How it fires'), firing(run, found), ...judged(found))),
    ...matches(run, found),
  ];
}

function about(run, found) {
  const list = found.exemplars;
  const missing = run.missing.find((m) => m.store === 'exemplars');
  if (list.source === 'probe') return `Strongest images of the probe set; asked for by ${list.why.join(', ')}.${list.heat ? ' Dark patches do not drive the unit.' : ''}`;
  if (list.source === 'stimuli') return `Strongest stimuli by ${list.mode}. ${missing ? `Patch highlights need the store of exemplars: ${missing.command}` : `For patch highlights ask for the unit: --set 'exemplars.units=["${found.kind}/${found.hook}/${found.unit}"]'`}`;
  return missing ? `The store of exemplars is not there: ${missing.command}` : '';
}

function lives(run, found, mode) {
  const rows = found.lives.map((one) => [`${one.subject}, ${run.modes.find((m) => m.mode === one.mode).title}`, one.best_of, one.held_out,
    Object.entries(one.regions).sort((a, b) => b[1] - a[1]).slice(0, 3).map(([region, count]) => `${region} ${count}`).join(', ') || '–',
    one.voxels.length ? h('a', { href: voxelAddress(run, one) }, number(one.voxels[0].r)) : '–']);
  const csv = () => [['subject', 'features', 'voxel', 'hemi', 'vertex', 'r in sample'], ...found.lives.flatMap((one) => one.voxels.map((v) => [one.subject, one.mode, v.voxel, v.hemi, v.vertex, v.r]))];
  return [
    smallCortex(run, found, mode),
    table(['subject, features', 'best unit of', 'held-out r', 'regions', 'highest r'], rows),
    exports(`${found.hook} unit ${found.unit} voxels`, null, csv),
  ];
}

function voxelAddress(run, one) {
  const v = one.voxels[0];
  return v.side ? address('#cortex', { subject: one.subject, mode: one.mode, map: `${one.mode}.${run.scored ? 'held_out' : 'in_sample'}`, surface: 'inflated', view: 'lateral', vertex: `${v.side},${v.at}` })
    : address('#cortex', { subject: one.subject, voxel: v.voxel, mode: one.mode });
}

function firing(run, found) {
  const missing = run.missing.find((m) => m.store === 'exemplars');
  if (!found.firing) return says('Firing statistics are in the store of exemplars, which is not there.', missing?.command);
  const f = found.firing;
  return table(['over the probe set', ''], [['images on which it fires', percent(f.image_rate)], ['tokens on which it fires', percent(f.token_rate)],
    ['mean code where it fires', number(f.mean_active)], ['largest code', number(f.largest)], ['energy', number(f.energy, 5)]]);
}

function judged(found) {
  if (!found.judged.length) return [];
  const rows = found.judged.map((j) => [j.judge, j.concept, j.count === null ? '–' : String(j.count), j.stable ? 'stable' : '–',
    j.effect === null ? '–' : `${number(j.effect, 2)}${j.low === null ? '' : ` (${number(j.low, 2)} to ${number(j.high, 2)})`}`]);
  const drawn = found.judged.filter((j) => j.effect !== null);
  return [h('h3', {}, 'What the judges call it'), table(['judge', 'concept', 'exemplars', '', 'effect, 95 % interval'], rows),
    drawn.length > 1 ? bars({ rows: drawn.map((j, i) => ({ label: `${j.judge}: ${j.concept}`, value: j.effect, colour: COLOURS[i % COLOURS.length] })) }) : null];
}

function matches(run, found) {
  const missing = run.missing.find((m) => m.store === 'match');
  const title = h('h3', {}, 'The same unit elsewhere');
  if (!found.matches.there) return [title, says('Matches with other dictionaries are not there.', missing?.command)];
  if (!found.matches.rows.length) return [title, h('p', { class: 'note' }, 'No dictionary of this run was matched with this one.')];
  return [title, h('div', { class: 'grid' }, found.matches.rows.map((row) => h('article', { class: 'unit' },
    h('h4', {}, row.here ? h('a', { href: unitAddress(row) }, `${row.hook} · unit ${row.unit}`) : `${row.dictionary} · unit ${row.unit}`, h('span', { class: 'kind' }, row.here ? ` ${row.kind}` : ''), ' ', chips(row.names)),
    h('p', { class: 'facts' }, [`r ${number(row.r)}`, row.chance !== null ? `chance ${number(row.chance)}` : null, row.cosine !== null ? `decoder cosine ${number(row.cosine)}` : null, row.one_to_one ? 'one-to-one partner' : null].filter(Boolean).join(' · ')),
    row.exemplars ? h('div', { class: 'strip' }, row.exemplars.images.slice(0, 6).map((_, i) => tile(row.exemplars, i))) : null))),
    exports(`${found.hook} unit ${found.unit} matches`, null, () => [['dictionary', 'unit', 'r', 'chance', 'decoder cosine', 'one-to-one'], ...found.matches.rows.map((r) => [r.dictionary, r.unit, r.r, r.chance, r.cosine, r.one_to_one])])];
}
