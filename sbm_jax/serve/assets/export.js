// Figures as SVG and PNG, numbers as CSV, made in the browser from what is shown.
import { h } from './dom.js';

export function fileName(text, suffix) {
  return `${text.replace(/[^\w.-]+/g, '-').replace(/^-+|-+$/g, '').slice(0, 100) || 'figure'}.${suffix}`;
}

export function saveBlob(blob, name) {
  const link = h('a', { download: name });
  link.href = URL.createObjectURL(blob);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 2000);
}

export function svgText(svg) {
  const copy = svg.cloneNode(true);
  copy.setAttribute('xmlns', 'http://www.w3.org/2000/svg');
  return new XMLSerializer().serializeToString(copy);
}

export function saveSvg(svg, title) {
  saveBlob(new Blob([svgText(svg)], { type: 'image/svg+xml' }), fileName(title, 'svg'));
}

export async function savePng(svg, title, ratio = 3) {
  const [, , width, height] = svg.getAttribute('viewBox').split(' ').map(Number);
  const image = new Image();
  const url = URL.createObjectURL(new Blob([svgText(svg)], { type: 'image/svg+xml' }));
  image.src = url;
  await image.decode();
  const sheet = h('canvas', { width: width * ratio, height: height * ratio });
  const context = sheet.getContext('2d');
  context.fillStyle = '#fff';
  context.fillRect(0, 0, sheet.width, sheet.height);
  context.drawImage(image, 0, 0, sheet.width, sheet.height);
  URL.revokeObjectURL(url);
  saveBlob(await new Promise((done) => sheet.toBlob(done)), fileName(title, 'png'));
}

// A text that a spreadsheet would take for a formula gets an apostrophe in front.
function cell(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return '';
  const text = typeof value === 'string' && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

export function saveCsv(rows, title) {
  saveBlob(new Blob([rows.map((row) => row.map(cell).join(',')).join('\n') + '\n'], { type: 'text/csv' }), fileName(title, 'csv'));
}

// Buttons under a figure. svg: a function that gives the drawing (it may have to fetch pictures); rows: a function or null.
export function exports(title, svg, rows) {
  const press = (label, act) => h('button', { type: 'button', class: 'quiet', 'aria-label': `${title}: save ${label}`, onclick: act }, label);
  return h('span', { class: 'exports' },
    svg && press('SVG', async () => saveSvg(await svg(), title)),
    svg && press('PNG', async () => savePng(await svg(), title)),
    rows && press('CSV', async () => saveCsv(await rows(), title)));
}
