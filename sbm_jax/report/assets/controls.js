// The viewer: its state, its controls, and the page's address that holds both.
const byId = (id) => document.getElementById(id);

function element(tag, text, className) {
  const out = document.createElement(tag);
  if (text !== undefined) out.textContent = text;
  if (className) out.className = className;
  return out;
}

function fillSelect(select, options, value) {
  select.replaceChildren(...options.map(([key, label]) => {
    const option = element('option', label);
    option.value = key;
    return option;
  }));
  select.value = value;
}

class Viewer {
  constructor(cortex) {
    this.cortex = cortex;
    this.painter = new Painter(cortex);
    this.canvas = byId('canvas');
    this.state = { subject: 0, map: null, surface: cortex.surfaces[0], hemis: 'both', by: '', hide: null, outlines: true,
      names: true, view: 'ventral', rotation: cortex.views.ventral, crossed: true, zoom: 1, pan: [0, 0], pin: null };
    this.chooseMap(cortex.subjects[0].maps[0].name);
    this.readAddress();
    this.build();
    this.listen();
    this.update();
  }

  get subject() { return this.cortex.subjects[this.state.subject]; }
  get map() { return this.subject.maps.find((m) => m.name === this.state.map) || this.subject.maps[0]; }
  get hideMap() { return this.subject.maps.find((m) => m.name === this.state.by && m.kind !== 'categorical') || this.map; }

  // Threshold 0..1000 of the slider <-> value; null where nothing can be hidden.
  range() {
    const map = this.hideMap;
    if (map.kind === 'categorical') return null;
    return map.kind === 'diverging' ? [0, Math.max(Math.abs(map.vmin), Math.abs(map.vmax))] : [Math.max(0, map.vmin), map.vmax];
  }

  chooseMap(name) {
    this.state.map = name;
    this.state.by = '';
    this.state.hide = this.map.threshold;
  }

  chooseView(name) {
    Object.assign(this.state, { view: name, rotation: this.cortex.views[name], crossed: this.cortex.crossed.includes(name), zoom: 1, pan: [0, 0] });
  }

  build() {
    const { cortex, state } = this;
    fillSelect(byId('subject'), cortex.subjects.map((s, i) => [String(i), s.name]), String(state.subject));
    fillSelect(byId('surface'), cortex.surfaces.map((s) => [s, s]), state.surface);
    const any = cortex.subjects.some((s) => s.atlases.length);
    byId('outlines').disabled = byId('names').disabled = !any;
  }

  // Controls follow the state, then the picture.
  update() {
    const { state } = this;
    const maps = this.subject.maps;
    state.map = this.map.name;
    fillSelect(byId('map'), maps.map((m) => [m.name, m.label]), state.map);
    const guards = maps.filter((m) => m.kind !== 'categorical' && m.name !== state.map);
    if (!guards.some((m) => m.name === state.by)) state.by = '';
    fillSelect(byId('by'), [['', 'this map'], ...guards.map((m) => [m.name, m.label])], state.by);
    byId('subject').value = String(state.subject);
    byId('surface').value = state.surface;
    byId('hemis').value = state.hemis;
    byId('outlines').checked = state.outlines;
    byId('names').checked = state.names;
    for (const button of byId('views').children) {
      button.disabled = state.surface === 'flat';
      button.setAttribute('aria-pressed', String(state.surface !== 'flat' && button.dataset.view === state.view));
    }
    const range = this.range(), slider = byId('threshold');
    slider.disabled = !range;
    if (!range) state.hide = null;
    slider.value = range && state.hide !== null ? String(Math.round(1000 * (state.hide - range[0]) / (range[1] - range[0]))) : '0';
    byId('threshold-value').textContent = range && state.hide !== null ? valueText(this.hideMap, state.hide) : 'off';
    byId('map-note').textContent = this.map.note;
    this.canvas.setAttribute('aria-label', `Cortical surface (${state.surface}, ${state.hemis} hemispheres): ${this.map.label}, ${this.subject.name}`);
    this.showPin();
    this.draw();
    this.writeAddress();
    document.dispatchEvent(new Event('viewchange'));
  }

  view() {
    return { ...this.state, subject: this.subject, map: this.map, hideMap: this.hideMap };
  }

  size() {
    const width = Math.max(280, this.canvas.parentElement.clientWidth);
    const share = this.state.hemis === 'both' ? (this.state.surface === 'flat' ? 0.455 : 0.47) : 0.62;
    return [width, Math.round(Math.min(640, Math.max(220, width * share)))];
  }

  draw(moving = false) {
    const [width, height] = this.size();
    const ratio = Math.min(window.devicePixelRatio || 1, 3);
    const { canvas } = this;
    const tall = height + KEY_HEIGHT;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(tall * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(tall * ratio);
      canvas.style.height = `${tall}px`;
    }
    const start = performance.now();
    this.paintOnto(canvas.getContext('2d'), width, height, ratio, moving ? 1 : Math.max(2, ratio));
    canvas.dataset[moving ? 'movingMs' : 'stillMs'] = (performance.now() - start).toFixed(1);
    clearTimeout(this.settle);
    if (moving) this.settle = setTimeout(() => { this.draw(); this.writeAddress(); }, 140);
  }

  paintOnto(context, width, height, ratio, quality) {
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = '#fff';
    context.fillRect(0, 0, width, height + KEY_HEIGHT);
    const view = this.view();
    this.painter.draw(context, view, width, height, quality);
    const own = view.hideMap === view.map ? view.hide : null;
    drawKey(context, view.map, this.cortex.tables[view.map.palette], height + 4, width, own);
  }

  moved() {
    if (this.queued) return;
    this.queued = true;
    requestAnimationFrame(() => { this.queued = false; this.draw(true); });
  }

  turn(across, down, side) {
    this.state.rotation = turned(this.state.rotation, side === 'right' ? -across : across, down);
    this.state.view = '';
    for (const button of byId('views').children) button.setAttribute('aria-pressed', 'false');
    this.moved();
  }

  shift(dx, dy, side) {
    const sign = side === 'right' && this.state.hemis === 'both' && this.state.surface !== 'flat' ? -1 : 1;
    this.state.pan = [this.state.pan[0] + sign * dx, this.state.pan[1] + dy];
    this.moved();
  }

  zoom(factor) {
    const zoom = Math.min(12, Math.max(0.5, this.state.zoom * factor));
    const change = zoom / this.state.zoom;
    this.state.zoom = zoom;
    this.state.pan = this.state.pan.map((p) => p * change);
    this.moved();
  }

  sideAt(x) {
    const pane = this.painter.places.find((p) => x >= p.left && x < p.right);
    return pane ? pane.side : 'left';
  }

  // A table of every map's value at a vertex.
  describe({ side, vertex }) {
    const out = document.createDocumentFragment();
    const index = vertex + (side === 'left' ? 0 : this.cortex.hemis.left.n);
    const regions = this.subject.atlases.flatMap((a) => {
      const label = a.labels()[index];
      return label ? [`${a.names[label - 1]} (${a.name})`] : [];
    });
    out.append(element('div', `${this.subject.name}, ${side} hemisphere, vertex ${vertex}`, 'where'));
    out.append(element('div', regions.length ? regions.join(', ') : 'no ROI'));
    const table = element('table', undefined, 'values');
    for (const map of this.subject.maps) {
      const row = element('tr', undefined, map === this.map ? 'now' : '');
      row.append(element('th', map.label), element('td', valueText(map, map.data()[index])));
      table.append(row);
    }
    out.append(table);
    return out;
  }

  showTip(x, y) {
    const tip = byId('tip');
    const found = this.painter.pick(x, y, this.state.surface);
    tip.hidden = !found;
    if (!found) return;
    const key = `${found.side}${found.vertex}${this.state.map}${this.state.subject}`;
    if (tip.dataset.key !== key) { tip.dataset.key = key; tip.replaceChildren(this.describe(found)); }
    const room = this.canvas.parentElement.clientWidth;
    tip.style.left = `${x + 18 + tip.offsetWidth > room ? Math.max(0, x - 14 - tip.offsetWidth) : x + 18}px`;
    tip.style.top = `${y + 14}px`;
  }

  showPin() {
    byId('readout').replaceChildren(...(this.state.pin ? [this.describe(this.state.pin)] : []));
  }

  save() {
    const [width, height] = this.size();
    const sheet = document.createElement('canvas');
    const ratio = 3, head = 30;
    sheet.width = width * ratio;
    sheet.height = (height + KEY_HEIGHT + head) * ratio;
    const painter = this.painter;
    this.painter = new Painter(this.cortex);
    const body = document.createElement('canvas');
    body.width = sheet.width;
    body.height = (height + KEY_HEIGHT) * ratio;
    this.paintOnto(body.getContext('2d'), width, height, ratio, ratio);
    this.painter = painter;
    const context = sheet.getContext('2d');
    context.fillStyle = '#fff';
    context.fillRect(0, 0, sheet.width, sheet.height);
    context.drawImage(body, 0, head * ratio);
    context.fillStyle = '#1b2026';
    context.font = `600 ${15 * ratio}px "Helvetica Neue", Arial, "Liberation Sans", sans-serif`;
    context.fillText(`${this.subject.name}: ${this.map.label}`, 8 * ratio, 21 * ratio);
    sheet.toBlob((blob) => {
      const link = document.createElement('a');
      link.href = URL.createObjectURL(blob);
      link.download = `${this.subject.name}_${this.map.name}_${this.state.surface}.png`.replace(/[^\w.-]+/g, '-');
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  }

  // What the address holds of the view.
  addressParts() {
    const s = this.state;
    const numbers = (list, digits) => list.map((x) => Number(x.toFixed(digits))).join(',');
    const parts = new URLSearchParams({ subject: this.subject.name, map: s.map, surface: s.surface, hemis: s.hemis });
    if (s.hide !== null) parts.set('hide', String(Number(s.hide.toPrecision(4))));
    if (s.by) parts.set('by', s.by);
    if (s.view) parts.set('view', s.view); else parts.set('turn', numbers([...s.rotation.slice(0, 6), s.crossed ? 1 : 0], 3));
    if (s.zoom !== 1) parts.set('zoom', s.zoom.toFixed(2));
    if (s.pan[0] || s.pan[1]) parts.set('pan', numbers(s.pan, 0));
    if (!s.outlines) parts.set('borders', '0');
    if (!s.names) parts.set('names', '0');
    if (s.pin) parts.set('vertex', `${s.pin.side},${s.pin.vertex}`);
    return parts;
  }

  writeAddress() {
    this.address = `#cortex?${this.addressParts()}`.replaceAll('%2C', ',');
    if (!this.started) { this.started = true; return; } // the page as opened keeps its address
    try { history.replaceState(null, '', this.address); } catch { /* some viewers of local files forbid it */ }
  }

  // A state from the address; whatever does not fit this page is ignored.
  readAddress() {
    if (!location.hash.startsWith('#cortex?')) return;
    const parts = new URLSearchParams(location.hash.slice(8));
    const { state, cortex } = this;
    const numbers = (key, count) => {
      const list = (parts.get(key) || 'none').split(',').map(Number);
      return list.length === count && list.every(Number.isFinite) ? list : null;
    };
    const subject = cortex.subjects.findIndex((s) => s.name === parts.get('subject'));
    if (subject >= 0) state.subject = subject;
    if (this.subject.maps.some((m) => m.name === parts.get('map'))) this.chooseMap(parts.get('map'));
    if (cortex.surfaces.includes(parts.get('surface'))) state.surface = parts.get('surface');
    if (['both', ...SIDES].includes(parts.get('hemis'))) state.hemis = parts.get('hemis');
    if (this.subject.maps.some((m) => m.name === parts.get('by'))) state.by = parts.get('by');
    state.hide = numbers('hide', 1)?.[0] ?? null;
    if (Object.hasOwn(cortex.views, parts.get('view') ?? '')) this.chooseView(parts.get('view'));
    const turn = numbers('turn', 7);
    if (turn) Object.assign(state, { view: '', rotation: orthonormal(turn.slice(0, 6)), crossed: turn[6] === 1 });
    const zoom = numbers('zoom', 1);
    if (zoom) state.zoom = Math.min(12, Math.max(0.5, zoom[0]));
    state.pan = numbers('pan', 2) || state.pan;
    state.outlines = parts.get('borders') !== '0';
    state.names = parts.get('names') !== '0';
    const [side, vertex] = (parts.get('vertex') || '').split(',');
    if (SIDES.includes(side) && Number(vertex) >= 0 && Number(vertex) < cortex.hemis[side].n) state.pin = { side, vertex: Math.floor(Number(vertex)) };
  }
}
