import { says } from './dom.js';

export async function show(run, words, place) { place.replaceChildren(says('This view is being built.')); }
