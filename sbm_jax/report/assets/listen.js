// What the mouse, fingers, keys and controls do to the viewer.
Viewer.prototype.listen = function listen() {
  const { canvas, state } = this;
  const change = (id, act) => byId(id).addEventListener('change', (event) => { act(event.target); this.update(); });
  const press = (id, act) => byId(id).addEventListener('click', act);
  change('subject', (target) => { state.subject = Number(target.value); });
  change('map', (target) => this.chooseMap(target.value));
  change('surface', (target) => Object.assign(state, { surface: target.value, zoom: 1, pan: [0, 0] }));
  change('hemis', (target) => { state.hemis = target.value; });
  change('by', (target) => { state.by = target.value; state.hide = this.hideMap.threshold; });
  change('outlines', (target) => { state.outlines = target.checked; });
  change('names', (target) => { state.names = target.checked; });
  byId('threshold').addEventListener('input', (event) => {
    const [low, high] = this.range();
    const at = Number(event.target.value) / 1000;
    state.hide = at === 0 ? null : low + at * (high - low);
    this.update();
  });
  for (const button of byId('views').children) {
    button.addEventListener('click', () => { this.chooseView(button.dataset.view); this.update(); });
  }
  press('zoom-in', () => this.zoom(1.25));
  press('zoom-out', () => this.zoom(0.8));
  press('reset', () => { this.chooseView(state.view || 'ventral'); this.update(); });
  press('save', () => this.save());

  const fingers = new Map();
  let travelled = 0, spread = 0, side = 'left';
  const point = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  canvas.addEventListener('pointerdown', (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, point(event));
    travelled = spread = 0;
    side = this.sideAt(point(event)[0]);
    canvas.classList.add('dragging');
  });
  canvas.addEventListener('pointermove', (event) => {
    const [x, y] = point(event), before = fingers.get(event.pointerId);
    if (!before) { this.showTip(x, y); return; }
    fingers.set(event.pointerId, [x, y]);
    byId('tip').hidden = true;
    const dx = x - before[0], dy = y - before[1];
    travelled += Math.abs(dx) + Math.abs(dy);
    if (fingers.size === 2) {
      const [a, b] = [...fingers.values()];
      const apart = Math.hypot(a[0] - b[0], a[1] - b[1]);
      if (spread) this.zoom(apart / spread);
      spread = apart;
      this.shift(dx / 2, dy / 2, side);
    } else if (state.surface === 'flat' || event.shiftKey) this.shift(dx, dy, side);
    else this.turn(dx * 0.009, dy * 0.009, side);
  });
  const lift = (event) => {
    fingers.delete(event.pointerId);
    spread = 0;
    if (!fingers.size) canvas.classList.remove('dragging');
  };
  canvas.addEventListener('pointerup', (event) => {
    const click = travelled < 4 && fingers.size === 1;
    lift(event);
    if (!click) return;
    state.pin = this.painter.pick(...point(event), state.surface);
    this.update();
  });
  canvas.addEventListener('pointercancel', lift);
  canvas.addEventListener('pointerleave', () => { byId('tip').hidden = true; });
  // A page that is being scrolled past must not zoom: the wheel belongs to the cortex once it has the focus.
  canvas.addEventListener('wheel', (event) => {
    if (document.activeElement !== canvas && !event.ctrlKey) return;
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)));
  }, { passive: false });
  canvas.addEventListener('keydown', (event) => {
    const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (arrow && state.surface === 'flat') this.shift(24 * arrow[0], 24 * arrow[1], 'left');
    else if (arrow) this.turn(0.12 * arrow[0], 0.12 * arrow[1], state.hemis === 'right' ? 'right' : 'left');
    else if (event.key === '+' || event.key === '=') this.zoom(1.25);
    else if (event.key === '-') this.zoom(0.8);
    else if (event.key === '0') { this.chooseView(state.view || 'ventral'); this.update(); }
    else if (event.key === 'Escape' && state.pin) { state.pin = null; this.update(); }
    else return;
    event.preventDefault();
  });
  window.addEventListener('resize', () => this.moved());
  window.addEventListener('hashchange', () => { if (location.hash.startsWith('#cortex?')) { this.readAddress(); this.update(); } });
};
