// Pictures with what drives a unit in them, one by one, in rows, and as a figure to save.
import { h, clip, number } from './dom.js';
import { s, text } from './svg.js';

let highlights = true;

export function highlighting() { return highlights; }

export function setHighlighting(on) {
  highlights = on;
  document.documentElement.classList.toggle('bare', !on);
}

// Darkens what does not drive the unit: the canvas has one pixel per patch and is stretched over the picture.
export function heatCanvas(heat) {
  const side = Math.round(Math.sqrt(heat.length));
  const canvas = h('canvas', { class: 'heat', width: side, height: side, 'aria-hidden': 'true' });
  const most = Math.max(...heat, 1e-12);
  const image = new ImageData(side, side);
  heat.forEach((value, i) => { image.data[4 * i + 3] = Math.round(178 * (1 - Math.sqrt(Math.max(0, value) / most))); });
  canvas.getContext('2d').putImageData(image, 0, 0);
  return canvas;
}

export function thumbAddress(list, row, side = 128) {
  return `/thumb/${list.source === 'probe' ? 'probe' : 'stimuli'}/${row}/${side}`;
}

export function tile(list, i, side = 128) {
  const row = list.images[i];
  const score = list.scores ? `, code ${number(list.scores[i])}` : '';
  const out = h('a', { class: 'tile', href: list.folder ? null : `#picture?image=${row}`, title: `picture ${row}${score}` },
    h('img', { src: thumbAddress(list, row, side), alt: `picture ${row}${score}`, loading: 'lazy', decoding: 'async' }));
  if (list.heat) out.append(heatCanvas(list.heat[i]));
  return out;
}

export function strip(list, most = 6, side = 128) {
  if (!list || !list.images.length) return h('p', { class: 'note' }, 'no exemplars: the store of exemplars was not asked for this unit');
  return h('div', { class: 'strip' }, list.images.slice(0, most).map((_, i) => tile(list, i, side)));
}

export function unitAddress(unit) { return `#unit?${new URLSearchParams({ kind: unit.kind, hook: unit.hook, unit: unit.unit })}`; }

export function chips(names) {
  return Object.entries(names || {}).map(([judge, concept]) => h('span', { class: 'chip', title: `${concept}: says ${judge}` }, clip(concept, 28), h('small', {}, judge)));
}

export function unitCard(unit, lines, most = 6) {
  const title = h('h3', {}, h('a', { href: unitAddress(unit) }, `${unit.hook} · unit ${unit.unit}`), ' ', h('span', { class: 'kind' }, unit.kind));
  return h('article', { class: 'unit' }, title, h('div', { class: 'chips' }, chips(unit.names)),
    h('p', { class: 'facts' }, lines.filter(Boolean).join(' · ')), strip(unit.exemplars, most));
}

async function dataAddress(url) {
  const blob = await (await fetch(url)).blob();
  return new Promise((done) => { const reader = new FileReader(); reader.onload = () => done(reader.result); reader.readAsDataURL(blob); });
}

// rows: [{title, list}] as an SVG with the pictures inside.
export async function gallerySvg(rows, most = 8) {
  const size = 96, gap = 6, head = 20;
  const width = 12 + most * (size + gap), height = 8 + rows.length * (size + gap + head);
  const out = s('svg', { viewBox: `0 0 ${width} ${height}` }, s('rect', { width, height, fill: '#fff' }));
  for (const [r, { title, list }] of rows.entries()) {
    const y = 8 + r * (size + gap + head);
    out.append(text(8, y + 12, title, { fill: '#1b2026', 'font-size': 12, 'font-weight': 600 }));
    for (const [i, row] of list.images.slice(0, most).entries()) {
      const place = { x: 8 + i * (size + gap), y: y + head, width: size, height: size };
      out.append(s('image', { ...place, href: await dataAddress(thumbAddress(list, row)) }));
      if (list.heat && highlights) out.append(s('image', { ...place, href: heatCanvas(list.heat[i]).toDataURL(), preserveAspectRatio: 'none' }));
    }
  }
  return out;
}
