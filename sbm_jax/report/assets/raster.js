// A z-buffer rasteriser for one triangle mesh at a time, into a plain RGBA buffer: no WebGL.
class Mesh {
  constructor(xyz, faces) {
    this.xyz = xyz;
    this.faces = faces;
    this.n = xyz.length / 3;
    this.normals = vertexNormals(xyz, faces);
    // screen position and depth (mm, larger is nearer) of every vertex, from the last draw
    this.sx = new Float32Array(this.n);
    this.sy = new Float32Array(this.n);
    this.sz = new Float32Array(this.n);
    this.used = new Uint8Array(this.n);
    for (const v of faces) this.used[v] = 1;
    let reach = 0;
    const low = [Infinity, Infinity], high = [-Infinity, -Infinity];
    for (let v = 0; v < this.n; v++) {
      if (!this.used[v]) continue;
      const [x, y, z] = xyz.subarray(3 * v, 3 * v + 3);
      reach = Math.max(reach, Math.hypot(x, y, z));
      low[0] = Math.min(low[0], x); high[0] = Math.max(high[0], x);
      low[1] = Math.min(low[1], y); high[1] = Math.max(high[1], y);
    }
    this.reach = reach;
    this.box = { low, high };
  }

  // Half the width on the screen, mm, under a rotation.
  halfWidth(rotation) {
    const { xyz } = this, [a, b, c] = rotation;
    let most = 0;
    for (let p = 0; p < xyz.length; p += 3) most = Math.max(most, Math.abs(a * xyz[p] + b * xyz[p + 1] + c * xyz[p + 2]));
    return most;
  }
}

function vertexNormals(xyz, faces) {
  const out = new Float32Array(xyz.length);
  for (let f = 0; f < faces.length; f += 3) {
    const a = 3 * faces[f], b = 3 * faces[f + 1], c = 3 * faces[f + 2];
    const ux = xyz[b] - xyz[a], uy = xyz[b + 1] - xyz[a + 1], uz = xyz[b + 2] - xyz[a + 2];
    const vx = xyz[c] - xyz[a], vy = xyz[c + 1] - xyz[a + 1], vz = xyz[c + 2] - xyz[a + 2];
    const nx = uy * vz - uz * vy, ny = uz * vx - ux * vz, nz = ux * vy - uy * vx;
    for (const v of [a, b, c]) { out[v] += nx; out[v + 1] += ny; out[v + 2] += nz; }
  }
  for (let v = 0; v < out.length; v += 3) {
    const length = Math.hypot(out[v], out[v + 1], out[v + 2]) || 1;
    out[v] /= length; out[v + 1] /= length; out[v + 2] /= length;
  }
  return out;
}

class Raster {
  constructor() { this.width = this.height = 0; }

  start(width, height) {
    if (width !== this.width || height !== this.height) {
      this.width = width;
      this.height = height;
      this.image = new ImageData(width, height);
      this.pixels = new Uint32Array(this.image.data.buffer);
      this.depth = new Float32Array(width * height);
      this.face = new Int32Array(width * height); // 1 + 2 * face + side, 0 = nothing
    }
    this.pixels.fill(0);
    this.depth.fill(-1e9);
    this.face.fill(0);
  }

  // rotation: 9 numbers, rows right, up, viewer. (cx, cy): where the mesh's centre lands. side: 0 left, 1 right.
  // paint: r, g, b (0..255) per vertex, `shown` (1 where the map is drawn), `crisp` (hard borders between colours).
  draw(mesh, paint, rotation, scale, cx, cy, from, to, lit, side) {
    const { xyz, normals, faces, sx, sy, sz } = mesh;
    const [m0, m1, m2, m3, m4, m5, m6, m7, m8] = rotation;
    const n = mesh.n;
    const R = this.r = fit(this.r, n), G = this.g = fit(this.g, n), B = this.b = fit(this.b, n);
    for (let v = 0, p = 0; v < n; v++, p += 3) {
      const x = xyz[p], y = xyz[p + 1], z = xyz[p + 2];
      sx[v] = cx + scale * (m0 * x + m1 * y + m2 * z);
      sy[v] = cy - scale * (m3 * x + m4 * y + m5 * z);
      sz[v] = m6 * x + m7 * y + m8 * z;
      let light = 1;
      if (lit) {
        const towards = Math.max(0, m6 * normals[p] + m7 * normals[p + 1] + m8 * normals[p + 2]);
        light = paint.shown[v] ? 0.74 + 0.26 * towards : 0.55 + 0.45 * towards;
      }
      R[v] = paint.r[v] * light; G[v] = paint.g[v] * light; B[v] = paint.b[v] * light;
    }
    const { pixels, depth, face, width, height } = this;
    const key = paint.crisp ? paint.key : null;
    for (let f = 0, id = 1 + side; f < faces.length; f += 3, id += 2) {
      const a = faces[f], b = faces[f + 1], c = faces[f + 2];
      const ax = sx[a], ay = sy[a], bx = sx[b], by = sy[b], ex = sx[c], ey = sy[c];
      const area = (bx - ax) * (ey - ay) - (ex - ax) * (by - ay);
      if (area >= 0) continue; // y points down: front faces have a negative area
      const x0 = Math.max(from, Math.ceil(Math.min(ax, bx, ex) - 0.5));
      const x1 = Math.min(to - 1, Math.floor(Math.max(ax, bx, ex) - 0.5));
      const y0 = Math.max(0, Math.ceil(Math.min(ay, by, ey) - 0.5));
      const y1 = Math.min(height - 1, Math.floor(Math.max(ay, by, ey) - 0.5));
      if (x1 < x0 || y1 < y0) continue;
      const inverse = 1 / area;
      const b1x = (ey - ay) * inverse, b1y = -(ex - ax) * inverse; // slopes of the weight of corner b
      const b2x = -(by - ay) * inverse, b2y = (bx - ax) * inverse; // and of corner c
      const za = sz[a], dzb = sz[b] - za, dzc = sz[c] - za;
      const ra = R[a], ga = G[a], ba = B[a];
      const drb = R[b] - ra, dgb = G[b] - ga, dbb = B[b] - ba;
      const drc = R[c] - ra, dgc = G[c] - ga, dbc = B[c] - ba;
      const mixed = key !== null && (key[a] !== key[b] || key[a] !== key[c]);
      for (let y = y0; y <= y1; y++) {
        const dx = x0 + 0.5 - ax, dy = y + 0.5 - ay;
        let wb = dx * b1x + dy * b1y, wc = dx * b2x + dy * b2y;
        for (let x = x0, p = y * width + x0; x <= x1; x++, p++, wb += b1x, wc += b2x) {
          if (wb < -1e-5 || wc < -1e-5 || wb + wc > 1.00001) continue;
          const z = za + wb * dzb + wc * dzc;
          if (z <= depth[p]) continue;
          depth[p] = z;
          face[p] = id;
          let r, g, bl;
          if (mixed) {
            const v = speaker(key, a, b, c, 1 - wb - wc, wb, wc);
            r = R[v]; g = G[v]; bl = B[v];
          } else {
            r = ra + wb * drb + wc * drc; g = ga + wb * dgb + wc * dgc; bl = ba + wb * dbb + wc * dbc;
          }
          pixels[p] = 0xff000000 | (bl << 16) | (g << 8) | r;
        }
      }
    }
  }
}

// The corner whose colour group weighs most: borders run straight from edge midpoint to edge midpoint.
function speaker(key, a, b, c, wa, wb, wc) {
  if (key[a] === key[b]) return wc > 0.5 ? c : wa >= wb ? a : b;
  if (key[a] === key[c]) return wb > 0.5 ? b : wa >= wc ? a : c;
  if (key[b] === key[c]) return wa > 0.5 ? a : wb >= wc ? b : c;
  return wa >= wb && wa >= wc ? a : wb >= wc ? b : c;
}

function fit(array, n) {
  return array && array.length >= n ? array : new Float32Array(n);
}
