// A picture with its patches: click, drag, or walk with the arrow keys and choose with Enter.
import { h } from './dom.js';

// chosen: a Set of patch numbers that is changed; changed: called after. heat: one value per patch, or nothing.
export function patchPicker(source, grid, chosen, changed, name, heat = null) {
  const image = h('img', { src: source, alt: name });
  if (!grid) return h('div', { class: 'patches' }, image, h('p', { class: 'note' }, 'The CLS token stands for the whole picture.'));
  const canvas = h('canvas', { tabIndex: 0, role: 'application', width: 512, height: 512,
    'aria-label': `${name}, ${grid} by ${grid} patches: arrow keys walk, Enter chooses, Escape lets all go` });
  const note = h('p', { class: 'note', 'aria-live': 'polite' });
  let cursor = 0, painting = null, focused = false;
  const draw = () => {
    const context = canvas.getContext('2d'), size = 512 / grid;
    context.clearRect(0, 0, 512, 512);
    const most = heat ? Math.max(...heat) : 0; // a unit that is silent here darkens nothing
    for (let t = 0; t < grid * grid; t++) {
      const x = (t % grid) * size, y = Math.floor(t / grid) * size;
      if (most > 0) { context.fillStyle = `rgba(0,0,0,${0.7 * (1 - Math.sqrt(Math.max(0, heat[t]) / most))})`; context.fillRect(x, y, size, size); } else if (chosen.size && !chosen.has(t)) { context.fillStyle = 'rgba(0,0,0,0.55)'; context.fillRect(x, y, size, size); }
      context.strokeStyle = 'rgba(255,255,255,0.25)';
      context.lineWidth = 1;
      context.strokeRect(x, y, size, size);
    }
    context.lineWidth = 3;
    for (const t of chosen) {
      context.strokeStyle = '#fff';
      context.strokeRect((t % grid) * size + 1.5, Math.floor(t / grid) * size + 1.5, size - 3, size - 3);
    }
    if (focused) {
      context.strokeStyle = '#0072b2';
      context.lineWidth = 5;
      context.strokeRect((cursor % grid) * size + 2.5, Math.floor(cursor / grid) * size + 2.5, size - 5, size - 5);
    }
    note.textContent = chosen.size ? `${chosen.size} of ${grid * grid} patches chosen` : `all ${grid * grid} patches; click some to choose them`;
  };
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / box.width * grid), row = Math.floor((event.clientY - box.top) / box.height * grid);
    return column >= 0 && row >= 0 && column < grid && row < grid ? row * grid + column : null;
  };
  const set = (t, on) => { if (on) chosen.add(t); else chosen.delete(t); };
  canvas.addEventListener('pointerdown', (event) => {
    const t = at(event);
    if (t === null) return;
    canvas.setPointerCapture(event.pointerId);
    painting = !chosen.has(t);
    cursor = t;
    set(t, painting);
    draw();
  });
  canvas.addEventListener('pointermove', (event) => { const t = at(event); if (painting !== null && t !== null) { set(t, painting); draw(); } });
  const end = () => { if (painting !== null) { painting = null; changed(); } };
  canvas.addEventListener('pointerup', end);
  canvas.addEventListener('pointercancel', end);
  canvas.addEventListener('focus', () => { focused = canvas.matches(':focus-visible'); draw(); });
  canvas.addEventListener('blur', () => { focused = false; draw(); });
  canvas.addEventListener('keydown', (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (step) {
      const column = Math.min(grid - 1, Math.max(0, cursor % grid + step[0])), row = Math.min(grid - 1, Math.max(0, Math.floor(cursor / grid) + step[1]));
      cursor = row * grid + column;
    } else if (event.key === 'Enter' || event.key === ' ') { set(cursor, !chosen.has(cursor)); changed(); } else if (event.key === 'Escape' && chosen.size) { chosen.clear(); changed(); } else return;
    focused = true;
    draw();
    event.preventDefault();
  });
  draw();
  const none = h('button', { type: 'button', class: 'quiet', onclick: () => { chosen.clear(); draw(); changed(); } }, 'all patches');
  return h('div', { class: 'patches' }, h('div', { class: 'frame' }, image, canvas), h('div', { class: 'heading' }, note, none));
}
