// The panel of one voxel.
import { ask, turns } from './net.js';
import { h, number, says, table } from './dom.js';
import { exports } from './export.js';
import { chips, gallerySvg, strip, unitAddress } from './exemplars.js';
import { COLOURS, layerChart, nullStrip } from './svg.js';

const turn = turns();

// An answer that is still to come is no longer wanted.
export function letVoxelGo() { turn(); }

export async function showVoxel(panel, run, place) {
  const newest = turn();
  let found;
  try { found = await ask('/api/voxel', place); } catch (error) {
    if (newest()) panel.replaceChildren(h('h2', {}, place.vertex === undefined ? `Voxel ${place.voxel}` : `Vertex ${place.vertex}`), says(error.message, error.command));
    return;
  }
  if (!newest()) return;
  panel.replaceChildren(...content(run, found));
  panel.scrollTop = 0;
  panel.dataset.voxel = found.voxel;
}

function content(run, found) {
  const where = found.hemi ? `${found.hemi === 'L' ? 'left' : 'right'} hemisphere, vertex ${found.vertex}` : `voxel ${found.voxel}`;
  const name = `${found.subject} ${where}`;
  const best = found.units[0];
  const scored = run.scored && best && best.held_out !== null;
  const value = best ? (scored ? best.held_out : best.in_sample) : null;
  const nulls = scored ? found.null.held_out : found.null.in_sample;
  const strip1 = () => nullStrip({ value, nulls, ceiling: found.ceiling, label: `${scored ? 'held-out' : 'in-sample'} r of the best unit; grey: images permuted` });
  const profile = () => layerChart({
    labels: run.labels, yLabel: 'r',
    series: [
      ...(run.scored ? [{ name: 'held out', values: found.profile.held_out, low: found.profile.low, high: found.profile.high, colour: COLOURS[0] }] : []),
      { name: 'in sample', values: found.profile.in_sample, colour: COLOURS[1], dash: '4 3' },
    ],
    levels: found.ceiling !== null ? [{ name: 'ceiling', value: found.ceiling }] : [],
  });
  const profileRows = () => [['layer', 'in sample', 'held out', 'low', 'high'],
    ...run.labels.map((label, i) => [label, found.profile.in_sample[i], found.profile.held_out[i], found.profile.low?.[i], found.profile.high?.[i]])];
  const unitRows = () => [['rank', 'hook', 'unit', 'in sample', 'held out', 'names'],
    ...found.units.map((u, i) => [i + 1, u.hook, u.unit, u.in_sample, u.held_out, Object.entries(u.names).map(([j, c]) => `${c} (${j})`).join('; ')])];
  const named = found.units.filter((u) => u.exemplars && u.exemplars.images.length);
  return [
    h('h2', { tabIndex: -1 }, found.subject, h('span', { class: 'soft' }, ` ${where}`)),
    h('p', { class: 'facts' }, [found.rois.join(', ') || 'no ROI', found.ncsnr === null ? 'ncsnr unknown' : `ncsnr ${number(found.ncsnr, 2)}`,
      found.ceiling === null ? 'ceiling unknown' : `ceiling on r ${number(found.ceiling, 2)}`, found.responsive ? null : 'below the floor of responsive voxels'].filter(Boolean).join(' · ')),
    h('h3', {}, found.title),
    h('figure', {}, strip1(), h('p', { class: 'note' }, `p ${p(found.null.p)}, FDR ${p(found.null.p_fdr)}, FWE ${p(found.null.p_fwe)} (in sample, ${found.null.permutations} permutations)`),
      exports(`${name} null`, strip1, () => [['what', 'r'], ['best unit', value], ['ceiling', found.ceiling], ...nulls.map((v) => ['permuted', v])])),
    h('figure', {}, h('figcaption', {}, h('strong', {}, 'Layer profile'), found.profile.depth !== undefined && found.profile.depth !== null ? h('span', {}, ` depth ${number(found.profile.depth, 2)}`) : null),
      profile(), exports(`${name} layers`, profile, profileRows)),
    h('div', { class: 'heading' }, h('h3', {}, `Best ${found.units.length} units`), exports(`${name} units`, named.length ? () => gallerySvg(named.map((u) => ({ title: `${u.hook} unit ${u.unit}`, list: u.exemplars }))) : null, unitRows)),
    ...found.units.map((unit) => h('article', { class: 'unit' },
      h('h4', {}, unit.kind ? h('a', { href: unitAddress(unit) }, `${unit.hook} · unit ${unit.unit}`) : `${unit.hook} · ${unit.unit}`, ' ', chips(unit.names)),
      h('p', { class: 'facts' }, [`in sample ${number(unit.in_sample)}`, unit.held_out === null ? null : `held out ${number(unit.held_out)}`,
        unit.held_out !== null && found.ceiling ? `${number(unit.held_out / found.ceiling, 2)} of the ceiling` : null].filter(Boolean).join(' · ')),
      unit.kind ? strip(unit.exemplars, 6) : null)),
    h('h3', {}, 'Under every kind of features'),
    table(['features', 'in sample', 'held out', 'shuffled', 'FDR'], found.modes.map((row) => [row.title, row.in_sample, row.held_out, row.shuffled, row.p_fdr])),
  ];
}

function p(value) { return value === null ? '–' : Number(value.toPrecision(2)).toString(); }
