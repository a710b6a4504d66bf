// Questions to our own server, each asked once while its answer is held.
const held = new Map();
const MOST = 400;

export class Refusal extends Error {
  constructor(status, answer) {
    super(answer.error || `the server answered ${status}`);
    this.status = status;
    this.command = answer.command || '';
  }
}

export function address(path, words) {
  const query = new URLSearchParams(Object.entries(words || {}).filter(([, value]) => value !== '' && value !== null && value !== undefined));
  return query.size ? `${path}?${query}` : path;
}

async function answered(response) {
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refusal(response.status, body);
  return body;
}

export function ask(path, words) {
  const url = address(path, words);
  if (!held.has(url)) {
    if (held.size > MOST) held.delete(held.keys().next().value);
    const answer = fetch(url).then(answered);
    answer.catch(() => held.delete(url));
    held.set(url, answer);
  }
  return held.get(url);
}

export function send(path, words, body) {
  return fetch(address(path, words), { method: 'POST', body }).then(answered);
}

// The newest of several questions wins: `latest()` gives a function that says whether it still is the newest.
export function turns() {
  let turn = 0;
  return () => { const mine = ++turn; return () => mine === turn; };
}
