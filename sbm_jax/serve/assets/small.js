// A small cortex beside a unit or a picture, with a way into the cortex view.
import { address, ask } from './net.js';
import { choose, h, says } from './dom.js';
import { bareCortex, mapOf, subjectOf } from './explorer.js';
import { exports } from './export.js';
import { s, text } from './svg.js';

const painters = new Map();

// Draws a map of a subject, flat, both hemispheres, with its colour bar, onto a canvas.
export async function drawSmall(canvas, subjectName, map, surface = 'flat') {
  const [cortex, subject] = await Promise.all([bareCortex(), subjectOf(subjectName)]);
  if (!painters.has(canvas)) painters.set(canvas, new Painter(cortex));
  const painter = painters.get(canvas);
  painter.paints.clear();
  const width = canvas.clientWidth || 460, height = Math.round(width * 0.45), ratio = Math.min(window.devicePixelRatio || 1, 2);
  canvas.width = width * ratio;
  canvas.height = (height + KEY_HEIGHT) * ratio;
  const context = canvas.getContext('2d');
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.fillStyle = '#fff';
  context.fillRect(0, 0, width, height + KEY_HEIGHT);
  painter.draw(context, { subject, map, surface, hemis: 'both', hide: map.threshold, hideMap: map, outlines: true, names: true, lineScale: 0.6,
    bare: true, rotation: cortex.views.ventral, crossed: true, zoom: 1, pan: [0, 0] }, width, height, Math.max(2, ratio));
  drawKey(context, map, cortex.tables[map.palette], height + 4, width, map.threshold);
}

export function canvasFigure(canvas, title) {
  return () => {
    const width = 600, height = Math.round(600 * canvas.height / canvas.width);
    return s('svg', { viewBox: `0 0 ${width} ${height + 26}` }, s('rect', { width, height: height + 26, fill: '#fff' }),
      text(8, 18, title, { 'font-size': 14, 'font-weight': 600, fill: '#1b2026' }), s('image', { x: 0, y: 26, width, height, href: canvas.toDataURL() }));
  };
}

export function smallCortex(run, unit, mode) {
  const state = { subject: run.subjects[0], mode };
  const canvas = h('canvas', { class: 'small', role: 'img' });
  const note = h('p', { class: 'note' });
  const link = h('a', { class: 'button' }, 'open on the cortex');
  const name = `${unit.hook} unit ${unit.unit}`;
  const draw = async () => {
    canvas.setAttribute('aria-label', `Similarity of ${name} with every voxel of ${state.subject}`);
    link.href = address('#cortex', { subject: state.subject, mode: state.mode, map: `unit.${unit.kind}/${unit.hook}/${unit.unit}/${state.mode}`, unit: `${unit.kind}/${unit.hook}/${unit.unit}/${state.mode}` });
    try {
      const answer = await ask('/api/unit_map', { kind: unit.kind, hook: unit.hook, unit: unit.unit, subject: state.subject, mode: state.mode, name: 'unit' });
      await drawSmall(canvas, state.subject, mapOf(answer));
      note.textContent = answer.note;
    } catch (error) { canvas.hidden = true; note.replaceChildren(says(error.message, error.command)); }
  };
  requestAnimationFrame(draw);
  return h('figure', {}, h('div', { class: 'toolbar' },
    choose('Subject', run.subjects.map((x) => [x, x]), state.subject, (v) => { state.subject = v; draw(); }),
    unit.modes.length > 1 && choose('Codes', unit.modes.map((m) => [m.mode, m.title]), state.mode, (v) => { state.mode = v; draw(); }), link,
    exports(`${name} on the cortex`, canvasFigure(canvas, name), null)), canvas, note);
}
