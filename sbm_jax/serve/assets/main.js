// The frame: which view the address asks for.
import { ask } from './net.js';
import { h, says } from './dom.js';
import * as cortex from './view_cortex.js';
import * as units from './view_units.js';
import * as unit from './view_unit.js';
import * as picture from './view_picture.js';
import * as edits from './view_edits.js';

const VIEWS = { cortex, units, unit, picture, edits };
let run = null;
let shown = '';

function asked() {
  const [view, query] = location.hash.slice(1).split('?');
  return [Object.hasOwn(VIEWS, view) ? view : 'cortex', new URLSearchParams(query || '')];
}

async function route() {
  const [view, words] = asked();
  const changed = view !== shown;
  shown = view;
  for (const name of Object.keys(VIEWS)) document.getElementById(`view-${name}`).hidden = name !== view;
  const tab = view === 'unit' ? 'units' : view;
  for (const link of document.getElementById('tabs').children) {
    if (link.dataset.view === tab) link.setAttribute('aria-current', 'page'); else link.removeAttribute('aria-current');
  }
  if (changed && view !== 'cortex') window.scrollTo(0, 0);
  const place = document.getElementById(`view-${view}`);
  if (view === 'cortex') await cortex.show(run, changed); else {
    await VIEWS[view].show(run, words, place);
    document.documentElement.dataset.ready = 'yes';
  }
  document.title = `${view === 'unit' ? `${words.get('hook')} unit ${words.get('unit')}` : view} · ${run.title}`;
}

async function begin() {
  try { run = await ask('/api/run'); } catch (error) {
    document.getElementById('main').replaceChildren(says(error.message, error.command));
    return;
  }
  document.getElementById('title').textContent = run.title;
  document.getElementById('subtitle').textContent = `${run.dataset}: ${run.subjects.length} ${run.subjects.length === 1 ? 'subject' : 'subjects'}, ${run.hooks.length} layers, ${run.images.toLocaleString('en')} images`;
  if (run.missing.length) {
    const box = document.getElementById('missing');
    box.replaceChildren(h('details', {}, h('summary', {}, `Not there yet: ${run.missing.map((m) => m.store).join(', ')}`),
      h('ul', {}, run.missing.map((m) => h('li', {}, `${m.shows}: `, h('code', {}, m.command))))));
    box.hidden = false;
  }
  document.getElementById('skip').addEventListener('click', (event) => { event.preventDefault(); document.getElementById('main').focus(); });
  window.addEventListener('hashchange', route);
  await route();
}

begin();
