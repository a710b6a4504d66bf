// Elements from plain values: whatever comes from data is text, never markup.
export function h(tag, properties, ...children) {
  const out = document.createElement(tag);
  for (const [key, value] of Object.entries(properties || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key === 'class') out.className = value;
    else if (key.startsWith('on')) out.addEventListener(key.slice(2), value);
    else if (key === 'data') Object.assign(out.dataset, value);
    else if (key in out && typeof value !== 'string') out[key] = value;
    else out.setAttribute(key, value);
  }
  out.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return out;
}

export function choose(label, options, value, change, properties = {}) {
  const select = h('select', { onchange: (event) => change(event.target.value), ...properties },
    options.map(([key, text]) => h('option', { value: String(key) }, text)));
  select.value = String(value);
  return h('label', {}, `${label} `, select);
}

export function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return '–';
  if (Number.isInteger(value)) return value.toLocaleString('en').replaceAll(',', '\u202f').replace('-', '−');
  return value.toFixed(digits).replace('-', '−');
}

export function plural(count, what) { return `${number(count, 0)} ${what}${count === 1 ? '' : 's'}`; }

export function percent(value) {
  if (value === null || value === undefined) return '–';
  const share = 100 * value;
  return `${share < 1 ? share.toPrecision(2) : share.toFixed(share < 10 ? 1 : 0)} %`;
}

// Columns whose first cell is a number or nothing are numbers: aligned to the right.
export function table(headings, rows, className = '') {
  const numeric = headings.map((_, i) => i > 0 && rows.length > 0 && rows.some((row) => typeof row[i] === 'number') && rows.every((row) => typeof row[i] === 'number' || row[i] === null));
  const at = (i) => (numeric[i] ? 'number' : '');
  return h('div', { class: 'scroll table' }, h('table', { class: className },
    headings.some(Boolean) ? h('thead', {}, h('tr', {}, headings.map((text, i) => h('th', { scope: 'col', class: at(i) }, text)))) : null,
    h('tbody', {}, rows.map((row) => h('tr', {}, row.map((cell, i) => {
      const shown = typeof cell === 'number' || cell === null ? number(cell) : cell;
      return i ? h('td', { class: at(i) }, shown) : h('th', { scope: 'row' }, shown);
    }))))));
}

export function says(text, command) {
  return h('p', { class: 'says' }, text, command ? [' Make it with ', h('code', {}, command), '.'] : null);
}

// Text from data may be long; whole in the title.
export function clip(text, most = 60) {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}
