// Borders and names of regions, drawn as vectors over the raster.

// Segments [face, a, b, c, d]: from the midpoint of edge a-b to that of c-d, or to the face's centre where d is -1.
function borderSegments(labels, faces) {
  const out = [];
  for (let f = 0; f < faces.length; f += 3) {
    const a = faces[f], b = faces[f + 1], c = faces[f + 2];
    const ab = labels[a] !== labels[b], bc = labels[b] !== labels[c], ca = labels[c] !== labels[a];
    if (ab && bc && ca) out.push(f, a, b, f, -1, f, b, c, f, -1, f, c, a, f, -1);
    else if (ab && bc) out.push(f, a, b, b, c);
    else if (bc && ca) out.push(f, b, c, c, a);
    else if (ab && ca) out.push(f, a, b, c, a);
  }
  return Int32Array.from(out);
}

// One path of every segment that faces the viewer and is not hidden. `q`: raster pixels per drawn pixel.
function borderPath(segments, mesh, raster, q) {
  const { sx, sy, sz, faces } = mesh;
  const path = new Path2D();
  for (let i = 0; i < segments.length; i += 5) {
    const f = segments[i], a = segments[i + 1], b = segments[i + 2];
    let c = segments[i + 3], d = segments[i + 4];
    const p = faces[f], r = faces[f + 1], s = faces[f + 2];
    if ((sx[r] - sx[p]) * (sy[s] - sy[p]) - (sx[s] - sx[p]) * (sy[r] - sy[p]) >= 0) continue;
    const x0 = (sx[a] + sx[b]) / 2, y0 = (sy[a] + sy[b]) / 2;
    let x1, y1;
    if (d < 0) { x1 = (sx[p] + sx[r] + sx[s]) / 3; y1 = (sy[p] + sy[r] + sy[s]) / 3; c = a; d = b; }
    else { x1 = (sx[c] + sx[d]) / 2; y1 = (sy[c] + sy[d]) / 2; }
    const z = (sz[a] + sz[b] + sz[c] + sz[d]) / 4;
    if (hidden(raster, (x0 + x1) / 2, (y0 + y1) / 2, z)) continue;
    path.moveTo(x0 / q, y0 / q);
    path.lineTo(x1 / q, y1 / q);
  }
  return path;
}

// 2 mm of slack: a border lies on the surface, and interpolated depths differ a little.
function hidden(raster, x, y, z) {
  const column = Math.floor(x), row = Math.floor(y);
  if (column < 0 || row < 0 || column >= raster.width || row >= raster.height) return true;
  return z < raster.depth[row * raster.width + column] - 2;
}

// Where each region's name goes: the centre of its visible vertices. [{name, x, y, size}], larger regions first.
function regionPlaces(atlases, offset, mesh, raster, q) {
  const places = [];
  for (const atlas of atlases) {
    const sums = atlas.names.map((name) => ({ name, x: 0, y: 0, size: 0, all: 0 }));
    const labels = atlas.labels();
    for (let v = 0; v < mesh.n; v++) {
      const label = labels[offset + v];
      if (!label || !mesh.used[v]) continue;
      const sum = sums[label - 1];
      sum.all++;
      if (hidden(raster, mesh.sx[v], mesh.sy[v], mesh.sz[v])) continue;
      sum.x += mesh.sx[v]; sum.y += mesh.sy[v]; sum.size++;
    }
    for (const sum of sums) {
      if (sum.size >= 3 && sum.size >= 0.4 * sum.all) {
        places.push({ name: sum.name, size: sum.size, x: sum.x / sum.size / q, y: sum.y / sum.size / q });
      }
    }
  }
  return places.sort((a, b) => b.size - a.size || (a.name < b.name ? -1 : 1));
}

// Names that would cover one already written are left out; zooming in brings them back.
function drawNames(context, places) {
  context.save();
  context.font = '600 11px "Helvetica Neue", Arial, "Liberation Sans", sans-serif';
  context.textAlign = 'center';
  context.textBaseline = 'middle';
  context.lineJoin = 'round';
  const taken = [];
  for (const { name, x, y } of places) {
    const half = context.measureText(name).width / 2 + 2;
    const box = [x - half, y - 7, x + half, y + 7];
    if (taken.some((t) => box[0] < t[2] && box[2] > t[0] && box[1] < t[3] && box[3] > t[1])) continue;
    taken.push(box);
    context.strokeStyle = 'rgba(255,255,255,0.88)';
    context.lineWidth = 3;
    context.strokeText(name, x, y);
    context.fillStyle = '#111';
    context.fillText(name, x, y);
  }
  context.restore();
}
