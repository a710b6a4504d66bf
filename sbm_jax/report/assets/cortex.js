// The cortex: embedded data, colours of the vertices, and the drawing of one view.
const SIDES = ['left', 'right'];
const KEY_HEIGHT = 66;

function loadCortex(source) {
  const hemis = {};
  for (const side of SIDES) {
    const hemi = source.hemis[side];
    const faces = once(() => integers(hemi.faces));
    hemis[side] = { n: hemi.n, grey: once(() => sulcalGrey(scalars(hemi.sulc))), mesh: {} };
    for (const surface of source.surfaces) {
      hemis[side].mesh[surface] = once(() => new Mesh(
        positions(hemi.coords[surface]), surface === 'flat' ? integers(hemi.flatFaces) : faces()));
    }
  }
  const tables = {};
  for (const [name, blob] of Object.entries(source.palettes)) tables[name] = toBytes(payload.blobs[blob]);
  const subjects = source.subjects.map((subject) => ({
    name: subject.name,
    maps: subject.maps.map((map) => ({ ...map, data: once(() => scalars(map.values)) })),
    atlases: subject.atlases.map((atlas) => ({ name: atlas.name, names: atlas.names, labels: once(() => integers(atlas.labels)) })),
  }));
  return { hemis, tables, subjects, surfaces: source.surfaces, views: source.views, crossed: source.crossed };
}

// Light gyri, dark sulci, with a soft edge.
function sulcalGrey(sulc) {
  let sum = 0, squares = 0;
  for (const s of sulc) { sum += s; squares += s * s; }
  const spread = Math.sqrt(Math.max(squares / sulc.length - (sum / sulc.length) ** 2, 0)) || 1;
  return sulc.map((s) => 218 - 68 / (1 + Math.exp(-3 * s / spread)));
}

// Colours of one hemisphere under one map: what `Raster.draw` calls paint.
function paintHemisphere(cortex, side, map, hide, hideMap) {
  const { n, grey } = cortex.hemis[side];
  const offset = side === 'left' ? 0 : cortex.hemis.left.n;
  const values = map.data(), guard = hideMap.data(), shades = grey();
  const categorical = map.kind === 'categorical';
  const table = categorical ? null : cortex.tables[map.palette];
  const paint = { r: new Float32Array(n), g: new Float32Array(n), b: new Float32Array(n),
    shown: new Uint8Array(n), key: new Int32Array(n), crisp: categorical };
  const span = map.vmax - map.vmin;
  for (let v = 0; v < n; v++) {
    const value = values[offset + v];
    let r = shades[v], g = r, b = r;
    if (!Number.isNaN(value) && (hide === null || Math.abs(guard[offset + v]) >= hide)) {
      paint.shown[v] = 1;
      if (categorical) {
        paint.key[v] = 1 + value;
        [r, g, b] = map.categories[value][1];
      } else {
        const i = 3 * Math.round(255 * Math.min(1, Math.max(0, (value - map.vmin) / span)));
        r = table[i]; g = table[i + 1]; b = table[i + 2];
      }
    }
    paint.r[v] = r; paint.g[v] = g; paint.b[v] = b;
  }
  return paint;
}

// The right hemisphere's camera is the left one's mirrored, on the screen and in space.
function mirrored(m) {
  return [m[0], -m[1], -m[2], -m[3], m[4], m[5], -m[6], m[7], m[8]];
}

// Rows 0 and 1 made orthonormal, row 2 their cross product.
function orthonormal(m) {
  const unit = (a) => { const l = Math.hypot(...a) || 1; return a.map((x) => x / l); };
  const a = unit(m.slice(0, 3));
  const along = a[0] * m[3] + a[1] * m[4] + a[2] * m[5];
  const b = unit([m[3] - along * a[0], m[4] - along * a[1], m[5] - along * a[2]]);
  return [...a, ...b, a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
}

// Turn by `across` radians about the screen's vertical and `down` about its horizontal axis.
function turned(m, across, down) {
  const c = Math.cos(across), s = Math.sin(across), d = Math.cos(down), t = Math.sin(down);
  const out = new Array(9);
  for (let i = 0; i < 3; i++) {
    const x = c * m[i] + s * m[6 + i], z = -s * m[i] + c * m[6 + i], y = m[3 + i];
    out[i] = x;
    out[3 + i] = d * y - t * z;
    out[6 + i] = t * y + d * z;
  }
  return orthonormal(out);
}

// Where each hemisphere goes: [{side, left, right, cx, cy, scale, rotation}] in CSS pixels.
function panes(cortex, view, width, height) {
  const flat = view.surface === 'flat';
  let sides = view.hemis === 'both' ? [...SIDES] : [view.hemis];
  if (!flat && view.crossed) sides.reverse();
  const wide = width / sides.length;
  const meshes = sides.map((side) => cortex.hemis[side].mesh[view.surface]());
  const across = flat
    ? Math.max(...meshes.map((m) => m.box.high[0] - m.box.low[0])) : 2 * Math.max(...meshes.map((m) => m.reach));
  const tall = flat ? Math.max(...meshes.map((m) => m.box.high[1] - m.box.low[1])) : across;
  const fitted = Math.min((flat ? 0.97 : 1.06) * wide / across, (flat ? 0.97 : 1.0) * height / tall);
  return sides.map((side, i) => {
    const scale = fitted * view.zoom;
    const sign = side === 'right' && sides.length > 1 && !flat ? -1 : 1;
    const rotation = side === 'right' ? mirrored(view.rotation) : view.rotation;
    let cx = wide * (i + 0.5), cy = height / 2;
    if (!flat && sides.length > 1) {
      // close together, whichever way they face
      const apart = Math.min(wide / 2, fitted * meshes[i].halfWidth(rotation) + 0.03 * wide);
      cx = wide + (i ? apart : -apart);
    }
    if (flat) {
      // medial edges of the two flat maps meet in the middle
      const { low, high } = meshes[i].box;
      cx -= scale * (low[0] + high[0]) / 2;
      cy += scale * (low[1] + high[1]) / 2;
    }
    return { side, left: wide * i, right: wide * (i + 1), cx: cx + sign * view.pan[0], cy: cy + view.pan[1], scale,
      rotation: flat ? [1, 0, 0, 0, 1, 0, 0, 0, 1] : rotation };
  });
}

// Draws one view onto a 2-D context of width x height CSS pixels. `quality`: raster pixels per CSS pixel.
class Painter {
  constructor(cortex) {
    this.cortex = cortex;
    this.raster = new Raster();
    this.sheet = document.createElement('canvas');
    this.paints = new Map();
    this.borders = new Map();
  }

  paint(subject, map, hide, hideMap, side) {
    const name = `${subject.name}\n${map.name}\n${hide}\n${hideMap.name}\n${side}`;
    if (!this.paints.has(name)) {
      if (this.paints.size > 8) this.paints.clear();
      this.paints.set(name, paintHemisphere(this.cortex, side, map, hide, hideMap));
    }
    return this.paints.get(name);
  }

  segments(subject, side, surface) {
    const flat = surface === 'flat';
    const name = `${subject.name}\n${side}\n${flat}`;
    if (!this.borders.has(name)) {
      const offset = side === 'left' ? 0 : this.cortex.hemis.left.n;
      const faces = this.cortex.hemis[side].mesh[surface]().faces;
      this.borders.set(name, subject.atlases.map((a) => borderSegments(a.labels().subarray(offset), faces)));
    }
    return this.borders.get(name);
  }

  // view: {subject, map, surface, hemis, hide, hideMap, outlines, names, rotation, crossed, zoom, pan, pin}
  draw(context, view, width, height, quality) {
    const { cortex, raster, sheet } = this;
    const w = Math.round(width * quality), h = Math.round(height * quality);
    raster.start(w, h);
    const places = panes(cortex, view, width, height);
    for (const pane of places) {
      const paint = this.paint(view.subject, view.map, view.hide, view.hideMap, pane.side);
      raster.draw(cortex.hemis[pane.side].mesh[view.surface](), paint, pane.rotation, pane.scale * quality,
        pane.cx * quality, pane.cy * quality, Math.round(pane.left * quality), Math.min(w, Math.round(pane.right * quality)),
        view.surface !== 'flat', pane.side === 'left' ? 0 : 1);
    }
    if (sheet.width !== w || sheet.height !== h) { sheet.width = w; sheet.height = h; }
    sheet.getContext('2d').putImageData(raster.image, 0, 0);
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = 'high';
    context.drawImage(sheet, 0, 0, w, h, 0, 0, width, height);
    for (const pane of places) this.overlay(context, view, pane, height, quality);
    this.places = places;
    this.quality = quality;
  }

  overlay(context, view, pane, height, quality) {
    const { cortex, raster } = this;
    const mesh = cortex.hemis[pane.side].mesh[view.surface]();
    context.save();
    context.beginPath();
    context.rect(pane.left, 0, pane.right - pane.left, height);
    context.clip();
    context.lineCap = context.lineJoin = 'round';
    if (view.outlines) {
      const paths = this.segments(view.subject, pane.side, view.surface).map((s) => borderPath(s, mesh, raster, quality));
      const strokes = view.bare ? [['#15171a90', 1.5]] : [['rgba(255,255,255,0.6)', 2.8], ['#15171a', 1.2]];
      for (const [style, thick] of strokes) {
        context.strokeStyle = style;
        context.lineWidth = thick * (view.lineScale || 1);
        for (const path of paths) context.stroke(path);
      }
    }
    if (view.names) {
      const offset = pane.side === 'left' ? 0 : cortex.hemis.left.n;
      drawNames(context, regionPlaces(view.subject.atlases, offset, mesh, raster, quality));
    }
    if (view.pin && view.pin.side === pane.side && mesh.used[view.pin.vertex]) {
      const v = view.pin.vertex;
      if (!hidden(raster, mesh.sx[v], mesh.sy[v], mesh.sz[v])) {
        for (const [style, thick] of [['#fff', 4], ['#111', 1.8]]) {
          context.beginPath();
          context.arc(mesh.sx[v] / quality, mesh.sy[v] / quality, 6, 0, 2 * Math.PI);
          context.strokeStyle = style;
          context.lineWidth = thick;
          context.stroke();
        }
      }
    }
    if (!view.bare) {
      context.font = '12px "Helvetica Neue", Arial, "Liberation Sans", sans-serif';
      context.fillStyle = '#58636e';
      context.textBaseline = 'top';
      const second = pane.left > 0; // names in the outer corners, clear of the cortex
      context.textAlign = second ? 'right' : 'left';
      context.fillText(`${pane.side} hemisphere`, second ? pane.right - 8 : 8, 6);
    }
    context.restore();
  }

  // The vertex drawn nearest to a point in CSS pixels, or null.
  pick(x, y, surface) {
    const { raster, quality } = this;
    const column = Math.floor(x * quality), row = Math.floor(y * quality);
    if (column < 0 || row < 0 || column >= raster.width || row >= raster.height) return null;
    const code = raster.face[row * raster.width + column];
    if (!code) return null;
    const side = SIDES[(code - 1) % 2], f = (code - 1 - (code - 1) % 2) / 2 * 3;
    const mesh = this.cortex.hemis[side].mesh[surface]();
    const distance = (v) => Math.hypot(mesh.sx[v] - x * quality, mesh.sy[v] - y * quality);
    const vertex = [...mesh.faces.subarray(f, f + 3)].sort((a, b) => distance(a) - distance(b))[0];
    return { side, vertex };
  }
}
