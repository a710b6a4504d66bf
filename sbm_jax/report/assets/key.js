// The colour bar or the swatches of categories, and numbers as text.

function niceTicks(low, high, count = 6) {
  const rough = (high - low) / (count - 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((m) => m * power >= rough * 0.999) * power;
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) ticks.push(i * step);
  return ticks;
}

function numberText(value, span) {
  const decimals = Math.max(0, Math.min(6, 3 - Math.ceil(Math.log10(Math.max(span, 1e-9)) - 1e-9)));
  const text = value.toFixed(decimals);
  return (Number(text) === 0 ? text.replace('-', '') : text).replace('-', '−');
}

// Without needless zeros, for ranges.
function shortText(value) {
  return String(Number(value.toPrecision(3))).replace('-', '−');
}

function valueText(map, value) {
  if (Number.isNaN(value)) return '–';
  if (map.kind === 'categorical') return map.categories[Math.round(value)][0];
  const text = numberText(value, map.vmax - map.vmin);
  return map.unit && map.unit.length <= 3 ? `${text} ${map.unit}` : text;
}

// Draws into the box (0, top, width, height); `hide`: threshold shown as grey on the bar, or null.
function drawKey(context, map, table, top, width, hide) {
  context.save();
  context.font = '12px "Helvetica Neue", Arial, "Liberation Sans", sans-serif';
  context.textBaseline = 'middle';
  context.fillStyle = '#1b2026';
  const title = map.unit ? `${map.label} (${map.unit})` : map.label;
  if (map.kind === 'categorical') drawSwatches(context, map, title, top, width);
  else {
    const wide = Math.min(340, width - 60), left = (width - wide) / 2, low = map.vmin, high = map.vmax;
    for (let x = 0; x < wide; x++) {
      const value = low + (high - low) * (x / (wide - 1));
      const i = 3 * Math.round(255 * (x / (wide - 1)));
      const off = hide !== null && Math.abs(value) < hide;
      context.fillStyle = off ? '#b9b9b9' : `rgb(${table[i]},${table[i + 1]},${table[i + 2]})`;
      context.fillRect(left + x, top + 22, 1.5, 11);
    }
    context.fillStyle = '#1b2026';
    context.textAlign = 'center';
    context.fillText(title, width / 2, top + 10);
    const ticks = niceTicks(low, high);
    const decimals = Math.max(...ticks.map((t) => String(Number(t.toFixed(6))).split('.')[1]?.length || 0));
    for (const tick of ticks) {
      const x = left + wide * ((tick - low) / (high - low));
      context.fillRect(x - 0.5, top + 33, 1, 4);
      context.fillText((Math.abs(tick) < 1e-12 ? 0 : tick).toFixed(decimals).replace('-', '−'), x, top + 46);
    }
  }
  context.restore();
}

function drawSwatches(context, map, title, top, width) {
  context.textAlign = 'center';
  context.fillText(title, width / 2, top + 10);
  context.textAlign = 'left';
  const widths = map.categories.map(([name]) => 18 + context.measureText(name).width + 16);
  const rows = [[]];
  let used = 0;
  widths.forEach((w, i) => {
    if (used + w > width - 20 && rows.at(-1).length) { rows.push([]); used = 0; }
    rows.at(-1).push(i);
    used += w;
  });
  rows.slice(0, 2).forEach((row, r) => {
    let x = (width - row.reduce((sum, i) => sum + widths[i], -16)) / 2;
    const y = top + 29 + 18 * r;
    for (const i of row) {
      const [name, [red, green, blue]] = map.categories[i];
      context.fillStyle = `rgb(${red},${green},${blue})`;
      context.fillRect(x, y - 6, 12, 12);
      context.fillStyle = '#1b2026';
      context.fillText(name, x + 18, y + 0.5);
      x += widths[i];
    }
  });
}
