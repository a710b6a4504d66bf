// Arrays embedded in the page: base64, little-endian (as every browser's typed arrays in practice), quantised.
const payload = JSON.parse(document.getElementById('payload').textContent);
const arrayTypes = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i2: Int16Array };

function toBytes(text) {
  const raw = atob(text);
  const out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return out;
}

function integers(reference) {
  return new arrayTypes[reference.type](toBytes(payload.blobs[reference.blob]).buffer);
}

// Coordinates in mm about the centre of the surface's bounding box, 3 per vertex.
function positions(reference) {
  const codes = integers(reference);
  return Float32Array.from(codes, (code) => code * reference.scale);
}

// Map values; code 0 is "no value".
function scalars(reference) {
  const codes = integers(reference);
  const out = new Float32Array(codes.length);
  for (let i = 0; i < codes.length; i++) out[i] = codes[i] === 0 ? NaN : reference.low + reference.step * (codes[i] - 1);
  return out;
}

function once(make) {
  let value;
  let made = false;
  return () => {
    if (!made) { value = make(); made = true; }
    return value;
  };
}
