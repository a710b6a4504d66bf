// Fills the page: pictures from the embedded bytes (each once), the viewer, and the small maps.
function showPictures() {
  const addresses = payload.pictures.map(([type, text]) => once(() => URL.createObjectURL(new Blob([toBytes(text)], { type }))));
  for (const image of document.querySelectorAll('img[data-picture]')) {
    image.decoding = 'async';
    image.src = addresses[Number(image.dataset.picture)]();
  }
}

// Rows: maps; columns: subjects. Flat where the cortex has a flat map.
function showGallery(cortex, viewer) {
  const gallery = byId('gallery');
  const painter = new Painter(cortex);
  const surface = cortex.surfaces.includes('flat') ? 'flat' : cortex.surfaces[0];
  const names = [...new Set(cortex.subjects.flatMap((s) => s.maps.map((m) => m.name)))];
  // all subjects of a map side by side, and on wide screens two maps beside each other for one or two subjects
  const count = cortex.subjects.length, most = gallery.clientWidth < 760 ? 2 : 4;
  const columns = count > 2 ? Math.min(count, most) : most;
  gallery.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      seen.unobserve(entry.target);
      entry.target.render();
    }
  }, { rootMargin: '200px' });
  const buttons = [];
  for (const name of names) {
    cortex.subjects.forEach((subject, index) => {
      const map = subject.maps.find((m) => m.name === name);
      if (!map) return;
      const figure = element('figure'), button = element('button'), canvas = element('canvas');
      const caption = element('figcaption', `${subject.name}: ${map.label}${map.kind === 'categorical' ? '' : `, ${rangeText(map)}`}`);
      button.type = 'button';
      button.setAttribute('aria-label', `Open ${map.label} of ${subject.name} in the viewer`);
      button.append(canvas);
      button.addEventListener('click', () => {
        viewer.state.subject = index;
        viewer.chooseMap(name);
        Object.assign(viewer.state, { surface, zoom: 1, pan: [0, 0] });
        viewer.update();
        byId('viewer').scrollIntoView({ block: 'center' });
      });
      canvas.render = () => {
        const ratio = Math.min(window.devicePixelRatio || 1, 2), width = canvas.clientWidth || 400, height = width / 2.35;
        canvas.width = Math.round(width * ratio);
        canvas.height = Math.round(height * ratio);
        const context = canvas.getContext('2d');
        context.setTransform(ratio, 0, 0, ratio, 0, 0);
        const view = { subject, map, surface, hemis: 'both', hide: map.threshold, hideMap: map, outlines: true, lineScale: 0.4,
          bare: true, rotation: cortex.views.ventral, crossed: true, zoom: 1, pan: [0, 0] };
        painter.draw(context, view, width, height, Math.max(2, ratio));
      };
      figure.append(button, caption);
      gallery.append(figure);
      buttons.push([button, index, name]);
      seen.observe(canvas);
    });
  }
  const mark = () => {
    for (const [button, index, name] of buttons) {
      button.setAttribute('aria-pressed', String(index === viewer.state.subject && name === viewer.state.map));
    }
  };
  document.addEventListener('viewchange', mark);
  mark();
}

function rangeText(map) {
  return `${shortText(map.vmin)} to ${shortText(map.vmax)}${map.unit ? ` (${map.unit})` : ''}`;
}

showPictures();
if (payload.cortex) {
  const cortex = loadCortex(payload.cortex);
  showGallery(cortex, new Viewer(cortex));
}
document.documentElement.dataset.ready = 'yes';
