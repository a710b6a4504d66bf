// Small charts. Everything is said by attributes, so that a saved figure looks as it does here.
export const COLOURS = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#e69f00', '#333333', '#8c6d31'];
const FONT = 'Helvetica Neue, Arial, Liberation Sans, sans-serif';

export function s(tag, attributes, ...children) {
  const out = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [key, value] of Object.entries(attributes || {})) if (value !== null && value !== undefined) out.setAttribute(key, value);
  out.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return out;
}

export function text(x, y, content, more = {}) {
  return s('text', { x, y, 'font-family': FONT, 'font-size': 11, fill: '#58636e', ...more }, content);
}

function finite(values) { return (values || []).filter((v) => v !== null && Number.isFinite(v)); }

// series: [{name, values, low, high, colour, dash}]; levels: [{name, value}]; labels: of x.
export function layerChart({ series, levels = [], labels, yLabel, xLabel = 'layer', width = 400, height = 190 }) {
  const all = [0, ...series.flatMap((one) => [...finite(one.values), ...finite(one.low), ...finite(one.high)]), ...finite(levels.map((l) => l.value))];
  const ticks = niceTicks(Math.min(...all), Math.max(0.05, ...all), 5);
  const step = ticks[1] - ticks[0];
  const low = Math.min(ticks[0], Math.floor(Math.min(...all) / step) * step), high = Math.max(ticks.at(-1), Math.max(...all));
  const left = 44, right = width - 96, top = 10, bottom = height - 34;
  const x = (i) => (labels.length > 1 ? left + (right - left) * i / (labels.length - 1) : (left + right) / 2);
  const y = (v) => bottom - (bottom - top) * (v - low) / (high - low || 1);
  const out = s('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', class: 'chart' });
  for (const tick of ticks) {
    out.append(s('line', { x1: left, x2: right, y1: y(tick), y2: y(tick), stroke: Math.abs(tick) < 1e-9 ? '#9aa4ad' : '#e6eaed' }),
      text(left - 6, y(tick) + 4, String(Number(tick.toFixed(4))).replace('-', '−'), { 'text-anchor': 'end' }));
  }
  labels.forEach((label, i) => {
    if (labels.length <= 14 || i % Math.ceil(labels.length / 12) === 0) out.append(text(x(i), bottom + 15, label, { 'text-anchor': 'middle' }));
  });
  out.append(text((left + right) / 2, height - 4, xLabel, { 'text-anchor': 'middle', fill: '#1b2026' }),
    text(0, 0, yLabel, { transform: `translate(11 ${(top + bottom) / 2}) rotate(-90)`, 'text-anchor': 'middle', fill: '#1b2026' }));
  const places = [];
  const name = (label, at, colour) => {
    let where = Math.min(bottom, Math.max(top + 6, at));
    while (places.some((p) => Math.abs(p - where) < 12)) where += 12;
    places.push(where);
    out.append(text(right + 7, where + 4, label, { fill: colour, 'font-weight': 600 }));
  };
  for (const level of levels) {
    if (!Number.isFinite(level.value)) continue;
    out.append(s('line', { x1: left, x2: right, y1: y(level.value), y2: y(level.value), stroke: '#58636e', 'stroke-dasharray': '5 4' }));
    name(level.name, y(level.value), '#58636e');
  }
  for (const one of series) {
    const at = one.values.map((v, i) => [i, v]).filter(([, v]) => v !== null && Number.isFinite(v));
    if (one.low && one.high) {
      const band = one.low.map((v, i) => [i, v, one.high[i]]).filter(([, a, b]) => a !== null && b !== null);
      const path = [...band.map(([i, a]) => `${x(i)},${y(a)}`), ...band.reverse().map(([i, , b]) => `${x(i)},${y(b)}`)];
      if (path.length) out.append(s('polygon', { points: path.join(' '), fill: one.colour, opacity: 0.16 }));
    }
    if (!at.length) continue;
    out.append(s('polyline', { points: at.map(([i, v]) => `${x(i)},${y(v)}`).join(' '), fill: 'none', stroke: one.colour, 'stroke-width': 2, 'stroke-dasharray': one.dash }));
    for (const [i, v] of at) out.append(s('circle', { cx: x(i), cy: y(v), r: 3, fill: one.colour, stroke: '#fff' }, s('title', {}, `${one.name}, ${labels[i]}: ${v.toFixed(3)}`)));
    name(one.name, y(at.at(-1)[1]), one.colour);
  }
  return out;
}

// Where a value lies among its null values; ceiling: a mark, or null.
export function nullStrip({ value, nulls, ceiling, label, width = 400, height = 76 }) {
  const all = finite([0, value, ceiling, ...nulls]);
  const low = Math.min(...all), high = Math.max(...all, low + 0.05);
  const x = (v) => 14 + (width - 28) * (v - low) / (high - low);
  const crowded = ceiling !== null && Math.abs(x(value ?? 0) - x(ceiling)) < 62;
  const out = s('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', class: 'chart' });
  out.append(s('line', { x1: 10, x2: width - 10, y1: 30, y2: 30, stroke: '#d9dee3' }));
  for (const tick of niceTicks(low, high, 6)) {
    out.append(s('line', { x1: x(tick), x2: x(tick), y1: 38, y2: 42, stroke: '#8a949e' }), text(x(tick), 54, String(Number(tick.toFixed(4))).replace('-', '−'), { 'text-anchor': 'middle' }));
  }
  for (const v of finite(nulls)) out.append(s('line', { x1: x(v), x2: x(v), y1: 22, y2: 38, stroke: '#8a949e', 'stroke-width': 1.5, opacity: 0.8 }));
  if (Number.isFinite(ceiling) && ceiling !== null) out.append(s('line', { x1: x(ceiling), x2: x(ceiling), y1: 16, y2: 38, stroke: '#1b2026', 'stroke-dasharray': '3 3' }), text(x(ceiling) + (crowded ? 4 : 0), 12, 'ceiling', { 'text-anchor': crowded ? (x(ceiling) > width - 48 ? 'end' : 'start') : x(ceiling) > width - 40 ? 'end' : 'middle' }));
  if (Number.isFinite(value) && value !== null) out.append(s('circle', { cx: x(value), cy: 30, r: 6, fill: '#0072b2', stroke: '#fff', 'stroke-width': 1.5 }), text(crowded ? x(value) - 10 : x(value), crowded ? 26 : 14, value.toFixed(3), { 'text-anchor': crowded ? 'end' : 'middle', fill: '#0072b2', 'font-weight': 600 }));
  out.append(text(width / 2, 71, label, { 'text-anchor': 'middle', fill: '#1b2026' }));
  return out;
}

// Horizontal bars. rows: [{label, value, colour, note, low, high}], from zero in either direction.
export function bars({ rows, width = 400, unit = '', most }) {
  const line = 19, left = 112, height = rows.length * line + 8;
  const values = finite(rows.flatMap((r) => [r.value, r.low, r.high]));
  const high = most ?? Math.max(1e-9, ...values), low = Math.min(0, ...values);
  const x = (v) => left + (width - left - 52) * (v - low) / (high - low || 1);
  const out = s('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', class: 'chart' });
  rows.forEach((row, i) => {
    const y = 4 + i * line;
    const label = row.label.length > 18 ? `${row.label.slice(0, 17)}…` : row.label;
    out.append(text(left - 6, y + 13, label, { 'text-anchor': 'end', fill: '#1b2026' }));
    if (row.value === null || !Number.isFinite(row.value)) return;
    const [a, b] = [x(Math.min(0, row.value)), x(Math.max(0, row.value))];
    out.append(s('rect', { x: a, y: y + 3, width: Math.max(1, b - a), height: 12, fill: row.colour || '#0072b2' }, s('title', {}, `${row.label}: ${row.value}`)));
    out.append(text(Math.max(b, x(0)) + 5, y + 13, row.note ?? `${row.value.toFixed(3).replace('-', '−')}${unit}`));
  });
  out.append(s('line', { x1: x(0), x2: x(0), y1: 2, y2: height - 4, stroke: '#9aa4ad' }));
  return out;
}
