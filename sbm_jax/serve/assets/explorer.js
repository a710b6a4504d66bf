// The report's viewer, fed by the server: maps come when they are chosen, a chosen vertex opens the panel.
import { ask, address } from './net.js';
import { h } from './dom.js';
import { fileName, saveBlob, saveSvg } from './export.js';
import { s, text } from './svg.js';

payload.blobs = [];

// Quantised pieces of one answer, read by the report's own codec.
function decoded(blobs, read) {
  const base = payload.blobs.length;
  payload.blobs.push(...blobs);
  const value = read((reference) => ({ ...reference, blob: reference.blob + base }));
  payload.blobs.length = base;
  return value;
}

export function mapOf(answer) {
  const values = decoded(answer.blobs, (at) => scalars(at(answer.values)));
  return { ...answer, blobs: null, values: null, data: () => values, loaded: true };
}

let surfaces = null;
// The surfaces with no subject on them; asked for once.
export async function bareCortex() {
  if (!surfaces) {
    surfaces = ask('/api/cortex').then((source) => {
      payload.blobs = source.blobs;
      const cortex = loadCortex({ ...source, subjects: [] });
      // everything is read now: later answers bring blobs of their own
      for (const side of SIDES) { cortex.hemis[side].grey(); for (const name of source.surfaces) cortex.hemis[side].mesh[name](); }
      payload.blobs = [];
      return cortex;
    });
  }
  return surfaces;
}

const subjects = new Map();
export async function subjectOf(name) {
  if (!subjects.has(name)) {
    const [cortex, answer] = await Promise.all([bareCortex(), ask('/api/subject', { subject: name })]);
    const blank = new Float32Array(2 * cortex.hemis.left.n).fill(NaN);
    const every = answer.maps.map((map) => ({ ...map, kind: 'sequential', unit: '', note: '', vmin: 0, vmax: 1, threshold: null,
      palette: 'ember', categories: [], data: () => blank, loaded: false, mode: map.name.includes('.') ? map.name.split('.')[0] : '' }));
    const atlases = answer.atlases.map((atlas) => {
      const labels = decoded(answer.blobs, (at) => integers(at(atlas.labels)));
      return { name: atlas.name, names: atlas.names, labels: () => labels };
    });
    subjects.set(name, { name, whyNot: answer.why_not, every, atlases, maps: every });
  }
  return subjects.get(name);
}

export class Explorer extends Viewer {
  get run() { return this.cortex.run; }

  showMode(mode) {
    this.state.mode = mode;
    for (const subject of this.cortex.subjects) subject.maps = subject.every.filter((map) => map.mode === mode || !map.mode);
  }

  chooseMap(name) {
    if (!this.state.mode) this.showMode(this.run.mode);
    this.state.map = name;
    this.state.by = '';
    this.state.hide = this.map.loaded ? this.map.threshold : undefined; // told when the map has come
  }

  readAddress() {
    if (!location.hash.startsWith('#cortex?')) return;
    const parts = new URLSearchParams(location.hash.slice(8));
    const mode = parts.get('mode');
    if (this.run.modes.some((m) => m.mode === mode)) this.showMode(mode);
    this.state.pin = null;
    this.fromAddress = true;
    const unit = parts.get('unit');
    if (unit) this.addUnitMap(parts.get('subject'), unit);
    const hadMap = this.subject.maps.some((m) => m.name === parts.get('map'));
    super.readAddress();
    if (!parts.has('hide') && parts.get('hide') !== 'off' && hadMap && !parts.has('surface')) this.state.hide = undefined;
  }

  // A map that is made for one unit: KIND/HOOK/UNIT/MODE.
  addUnitMap(name, unit) {
    const [kind, hook, number, mode] = unit.split('/');
    const words = { kind, hook, unit: number, mode };
    for (const subject of this.cortex.subjects) {
      const label = `r with ${hook} unit ${number} (${mode})`;
      const made = `unit.${unit}`;
      if (subject.every.some((m) => m.name === made)) continue;
      const blank = subject.every[0].data();
      const map = { name: made, label, kind: 'sequential', unit: 'r', note: '', vmin: 0, vmax: 1, threshold: null, palette: 'blue-red',
        categories: [], data: () => blank, loaded: false, mode: '', ask: ['/api/unit_map', { ...words, subject: subject.name, name: made }], unitOf: unit };
      subject.every.push(map);
      subject.maps = [...subject.maps, map];
    }
  }

  build() {
    super.build();
    const modes = byId('mode');
    fillSelect(modes, this.run.modes.map((m) => [m.mode, m.title]), this.state.mode);
    modes.addEventListener('change', () => {
      const key = this.state.map.includes('.') ? this.state.map.split('.').slice(1).join('.') : this.state.map;
      const hide = this.state.hide;
      this.showMode(modes.value);
      const wanted = this.subject.maps.find((m) => m.name === `${modes.value}.${key}`) || this.subject.maps.find((m) => m.name === this.state.map) || this.subject.maps[0];
      this.chooseMap(wanted.name);
      this.state.hide = hide;
      this.update();
    });
    byId('save-svg').addEventListener('click', () => this.saveSvg());
    byId('save-csv').addEventListener('click', () => this.saveCsv());
    this.canvas.addEventListener('keydown', (event) => this.walk(event), true);
  }

  load(map) {
    if (!map.coming) {
      map.coming = ask(...(map.ask || ['/api/map', { subject: this.subject.name, map: map.name }])).then((answer) => {
        const { label, mode } = map;
        Object.assign(map, mapOf(answer), { mode, label: map.ask ? answer.label : label, name: map.name });
      });
    }
    return map.coming;
  }

  update() {
    if (!this.state.mode) return;
    byId('mode').value = this.state.mode;
    const map = this.map;
    this.state.map = map.name;
    const waited = [map, this.hideMap].find((one) => !one.loaded);
    if (!waited) {
      if (this.state.hide === undefined) this.state.hide = this.hideMap.threshold;
      byId('stage').classList.remove('waiting');
      super.update();
      document.documentElement.dataset.ready = 'yes';
      return;
    }
    byId('stage').classList.add('waiting');
    this.load(waited).then(() => this.update(), (error) => {
      byId('stage').classList.remove('waiting');
      byId('map-note').textContent = error.message;
      document.documentElement.dataset.ready = 'yes';
    });
  }

  addressParts() {
    const parts = super.addressParts();
    parts.set('mode', this.state.mode);
    if (this.map.unitOf) parts.set('unit', this.map.unitOf);
    return parts;
  }

  // What a reader chose is a step to come back to; turning and zooming is not.
  writeAddress() {
    if (byId('view-cortex').hidden) return;
    const parts = this.addressParts();
    const next = `#cortex?${parts}`.replaceAll('%2C', ',').replaceAll('%2F', '/');
    const steps = ['subject', 'mode', 'map', 'surface', 'vertex'].map((key) => parts.get(key)).join('\n');
    const step = this.steps !== undefined && this.steps !== steps && !this.fromAddress;
    this.steps = steps;
    this.fromAddress = false;
    if (location.hash === next) return;
    if (step) history.pushState(null, '', next);
    else history.replaceState(null, '', next);
  }

  moved() { if (!byId('view-cortex').hidden) super.moved(); }

  size() {
    const width = Math.max(280, this.canvas.parentElement.clientWidth);
    const share = this.state.hemis === 'both' ? (this.state.surface === 'flat' ? 0.5 : 0.52) : 0.75;
    const room = Math.max(260, window.innerHeight - 350);
    return [width, Math.round(Math.min(room, Math.max(220, width * share)))];
  }

  describe({ side, vertex }) {
    const index = vertex + (side === 'left' ? 0 : this.cortex.hemis.left.n);
    const regions = this.subject.atlases.flatMap((a) => { const label = a.labels()[index]; return label ? [a.names[label - 1]] : []; });
    const rows = this.subject.maps.filter((map) => map.loaded).slice(0, 8);
    return h('div', {}, h('div', { class: 'where' }, `${side} hemisphere, vertex ${vertex}`), h('div', {}, regions.join(', ') || 'no ROI'),
      h('table', { class: 'values' }, rows.map((map) => h('tr', { class: map === this.map ? 'now' : '' }, h('th', {}, map.label), h('td', {}, valueText(map, map.data()[index]))))));
  }

  showPin() {
    const { pin } = this.state;
    this.onPin(pin ? { subject: this.subject.name, hemi: pin.side, vertex: pin.vertex, mode: this.state.mode } : null);
  }

  // Enter takes the vertex in the middle; Shift and an arrow walks to the neighbour in that direction.
  walk(event) {
    const { state, painter } = this;
    const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === 'Enter' && !state.pin) {
      const [width, height] = this.size();
      for (const share of [0.25, 0.75, 0.5, 0.35, 0.65]) {
        state.pin = painter.pick(width * share, height / 2, state.surface);
        if (state.pin) break;
      }
      this.update();
    } else if (event.key === 'Enter') byId('panel').querySelector('a, button')?.focus();
    else if (arrow && event.shiftKey && state.pin) {
      const mesh = this.cortex.hemis[state.pin.side].mesh[state.surface]();
      const from = state.pin.vertex, next = new Set();
      for (let f = 0; f < mesh.faces.length; f += 3) {
        const corners = mesh.faces.subarray(f, f + 3);
        if (corners.includes(from)) for (const v of corners) if (v !== from) next.add(v);
      }
      let best = null, most = 0;
      for (const v of next) {
        const [dx, dy] = [mesh.sx[v] - mesh.sx[from], mesh.sy[v] - mesh.sy[from]];
        const along = (dx * arrow[0] + dy * arrow[1]) / (Math.hypot(dx, dy) || 1);
        if (along > most) { most = along; best = v; }
      }
      if (best === null) return;
      state.pin = { side: state.pin.side, vertex: best };
      this.update();
    } else return;
    event.preventDefault();
    event.stopImmediatePropagation();
  }

  sheet(ratio) {
    const [width, height] = this.size();
    const painter = this.painter;
    this.painter = new Painter(this.cortex);
    const body = h('canvas', { width: width * ratio, height: (height + KEY_HEIGHT) * ratio });
    this.paintOnto(body.getContext('2d'), width, height, ratio, ratio);
    this.painter = painter;
    return [body, width, height + KEY_HEIGHT];
  }

  get figureTitle() { return `${this.subject.name}: ${this.map.label}${this.map.mode ? `, ${this.run.modes.find((m) => m.mode === this.map.mode).title}` : ''}`; }

  // The surface is a raster in either kind of file; an SVG has its title as text.
  saveSvg() {
    const [body, width, height] = this.sheet(3);
    saveSvg(s('svg', { viewBox: `0 0 ${width} ${height + 30}` }, s('rect', { width, height: height + 30, fill: '#fff' }),
      text(8, 21, this.figureTitle, { 'font-size': 15, 'font-weight': 600, fill: '#1b2026' }),
      s('image', { x: 0, y: 30, width, height, href: body.toDataURL() })), this.figureTitle);
  }

  save() {
    const [body, width, height] = this.sheet(3);
    const out = h('canvas', { width: width * 3, height: (height + 30) * 3 });
    const context = out.getContext('2d');
    context.fillStyle = '#fff';
    context.fillRect(0, 0, out.width, out.height);
    context.drawImage(body, 0, 90);
    context.fillStyle = '#1b2026';
    context.font = '600 45px "Helvetica Neue", Arial, "Liberation Sans", sans-serif';
    context.fillText(this.figureTitle, 24, 63);
    out.toBlob((blob) => saveBlob(blob, fileName(this.figureTitle, 'png')));
  }

  saveCsv() {
    if (this.map.unitOf) {
      const values = this.map.data(), half = this.cortex.hemis.left.n;
      const rows = Array.from(values, (value, i) => `${i < half ? 'L' : 'R'},${i % half},${Number.isNaN(value) ? '' : value}`);
      saveBlob(new Blob([`hemi,vertex,r\n${rows.join('\n')}\n`], { type: 'text/csv' }), fileName(this.figureTitle, 'csv'));
      return;
    }
    h('a', { href: address('/csv/map', { subject: this.subject.name, map: this.map.name }), download: '' }).click();
  }
}
