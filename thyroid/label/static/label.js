// The bench: what is said about the frame on the stage, saving and undo, the next frame, and the keys.
// shapes.js and stage.js stand before it in the same module.
const IDLE = 30_000; // milliseconds without a press or a key after which the reader is taken to be away
const GLANCE = 200; // milliseconds in which nobody has looked at a frame: a key pressed twice does not save it
const PAUSES = [1000, 2000, 5000, 10_000, 20_000]; // milliseconds before a save is tried again
const GROUPS = { KeyC: 'composition', KeyE: 'echogenicity', KeyH: 'shape', KeyM: 'margin', KeyF: 'foci', KeyS: 'side' };

let queue = 'order';
let view = null; // the frame on the stage and what is said about it; see `opened`
let ready = null; // the next one, with its picture
let fetching = null;
let busy = false; // while a frame is exchanged for another one, keys and pointers wait
let group = ''; // feature whose number is expected
let sending = null;
let count = 0; // readings saved in this window
let wake = () => {};
const pending = []; // readings on their way, oldest first
const held = []; // readings that the server refused; the reader decides
const aside = []; // views that were left for another one, and are to be shown again
const passed = new Set(); // frames skipped in this queue
const kept = new Map(); // what was sent in this window by frame, so that undo shows it again

const percent = (share) => `${(share * 100).toFixed(share < 0.1 || (share > 0.9 && share < 1) ? 1 : 0)}\u00a0%`;
const tell = (text) => { $('status').textContent = text; };
const key = (name) => {
  const node = document.createElement('kbd');
  node.textContent = name;
  return node;
};

// ---- what is said about a frame

const snapshot = () => structuredClone({ regions: view.regions, verdict: view.verdict, side: view.side, selected: view.selected });
const restore = (state) => { Object.assign(view, structuredClone(state)); changed(); };
const dirty = (one) => one.past.length > 0 || one.unsaved;

// One step of undo; steps of the same kind in a row, such as presses of an arrow key, are one.
function remember(before = snapshot(), kind = '') {
  if (kind && view.kind === kind) return;
  view.kind = kind;
  view.past.push(before);
}

function select(index) {
  view.selected = index;
  view.kind = '';
  changed();
}

function setBox(index, box) {
  const region = view.regions[index];
  region.box = fitted(box, view.frame);
  if (region.origin !== 'drawn') region.origin = 'corrected';
  changed();
}

function accept(number) {
  const proposal = view.proposals[number];
  if (!proposal) return;
  remember();
  const there = view.regions.findIndex((region) => region.proposal === number);
  if (there >= 0) {
    view.regions.splice(there, 1);
    view.selected = view.regions.length - 1;
    tell(say('said_removed'));
  } else {
    view.verdict = '';
    view.regions.push({ box: fitted(proposal.box, view.frame), origin: 'accepted', features: {}, proposal: number });
    view.selected = view.regions.length - 1;
    tell(say('said_accepted', { number: number + 1 }));
  }
  changed();
}

function take(index) {
  const candidate = view.candidates?.[index];
  if (!candidate) return;
  remember();
  fill(view, candidate.reading);
  for (const region of view.regions) region.origin = 'accepted';
  changed();
}

function decide(verdict) {
  remember();
  view.verdict = view.verdict === verdict ? '' : verdict;
  if (view.verdict) Object.assign(view, { regions: [], selected: -1 });
  changed();
}

function remove() {
  if (!view.regions[view.selected]) return;
  remember();
  view.regions.splice(view.selected, 1);
  view.selected = Math.min(view.selected, view.regions.length - 1);
  tell(say('said_removed'));
  changed();
}

// Several kinds of foci stand in the order of their buttons, as the server keeps them; "none" stands alone.
function toggled(now, value) {
  const kinds = new Set((now ?? '').split('+').filter((one) => one && (one === 'none') === (value === 'none')));
  if (!kinds.delete(value)) kinds.add(value);
  return [...document.querySelectorAll('[data-group="foci"] [data-value]')].map((node) => node.dataset.value).filter((one) => kinds.has(one)).join('+');
}

// A value that is chosen again is taken back.
function choose(name, value) {
  const region = view.regions[view.selected];
  if (name !== 'side' && !region) return;
  remember();
  if (name === 'side') {
    view.side = view.side === value ? '' : value;
  } else {
    const next = name === 'foci' ? toggled(region.features[name], value) : region.features[name] === value ? '' : value;
    if (next) region.features[name] = next;
    else delete region.features[name];
  }
  group = '';
  changed();
}

function fill(one, reading) {
  one.regions = reading ? reading.regions.map(({ x, y, width, height, origin, features }) => ({ box: [x, y, width, height], origin, features: { ...features } })) : [];
  one.verdict = reading && reading.verdict !== 'nodules' ? reading.verdict : '';
  one.side = reading?.side ?? '';
  one.selected = one.regions.length ? 0 : -1;
}

const spoken = (one) => ({
  verdict: one.regions.length ? 'nodules' : one.verdict,
  regions: one.regions.map(({ box: [x, y, width, height], origin, features }) => ({ x, y, width, height, origin, features })),
  side: one.side,
});

// ---- effort

function spend() {
  if (!view) return;
  const now = performance.now();
  const gone = now - view.effort.last;
  view.effort.last = now;
  if (gone < IDLE) view.effort.milliseconds += gone;
}
addEventListener('pointerdown', () => { if (view && !busy) { spend(); view.effort.pointer += 1; } }, true);
addEventListener('pointermove', spend, { capture: true, passive: true });
addEventListener('wheel', spend, { capture: true, passive: true });
addEventListener('keydown', (event) => {
  if (!view || busy || event.repeat || ['Shift', 'Control', 'Alt', 'Meta'].includes(event.key)) return;
  spend();
  view.effort.keys += 1;
}, true);

// ---- the server

async function ask(path, body, again = true) {
  const options = body ? { method: 'POST', body: JSON.stringify(body), headers: { 'content-type': 'application/json', 'x-csrftoken': $('csrf').value } } : {};
  try {
    const answer = await fetch(path, { ...options, cache: 'no-store' });
    if (again && body && answer.headers.get('x-token') && (await renew())) return ask(path, body, false);
    return { status: answer.status, body: await answer.json().catch(() => ({})) };
  } catch {
    return { status: 0, body: { error: say('error_network') } };
  }
}

// A server that was restarted, or a new sign-in, wants another token.
async function renew() {
  const answer = await fetch('/', { cache: 'no-store' }).catch(() => null);
  const found = answer?.ok && new DOMParser().parseFromString(await answer.text(), 'text/html').getElementById('csrf');
  if (found) $('csrf').value = found.value;
  return Boolean(found);
}

// A frame with its picture, as the server describes it; `error` if the picture cannot be shown.
async function opened(answer) {
  const { frame, base, reading, proposals, unsure, suggested, suspect, candidates, classes, asks_side: asks } = answer;
  const one = {
    frame, queue: answer.queue, base, proposals: candidates ? [] : proposals ?? [], unsure: Boolean(unsure), suggested: suggested ?? {}, suspect: suspect ?? null, candidates: candidates ?? null, classes: classes ?? [], asks: Boolean(asks),
    regions: [], verdict: '', side: '', selected: -1, past: [], kind: '', unsaved: false, url: '', error: '', effort: { milliseconds: 0, pointer: 0, keys: 0, last: 0 },
  };
  fill(one, reading);
  try {
    const picture = await fetch(`/frame/${frame.id}`, { cache: 'no-store' });
    if (!picture.ok) {
      const told = await picture.json().catch(() => ({}));
      if (!REFUSED[picture.status]) return { failed: { status: picture.status, body: told } };
      one.error = told.error || say('error_picture');
      return one;
    }
    one.url = URL.createObjectURL(await picture.blob());
    const image = new Image();
    image.src = one.url;
    await image.decode();
  } catch {
    if (!one.url) return { failed: { status: 0, body: {} } };
    one.error = say('error_picture');
  }
  return one;
}

const known = () => [view?.frame.id, ...pending.map((one) => one.view.frame.id), ...held.map((one) => one.view.frame.id), ...aside.map((one) => one.frame.id), ...passed].filter(Boolean);

// Fetches the frame after the one on the stage, so that a save shows it at once.
function prefetch() {
  if (ready || fetching) return fetching;
  const mine = { queue, stop: false };
  fetching = mine;
  mine.done = (async () => {
    const skip = known();
    const before = pending.length ? -1 : count;
    const answer = await ask(`/api/next?${new URLSearchParams([['queue', queue], ...skip.slice(0, 50).map((id) => ['skip', id])])}`);
    if (mine.stop) return;
    let found = null;
    if (answer.status !== 200) found = { failed: answer };
    else if (!answer.body.frame) found = { empty: answer.body };
    // a server that has not got the readings on their way offers their frames again
    else if (!known().includes(answer.body.frame.id)) found = await opened(answer.body);
    if (mine.stop) return;
    fetching = null;
    ready = found;
    if (answer.status === 200) heard(answer.body, before === count);
    if (!view) return arrive();
    if (!ready?.failed) return undefined;
    ready = null; // the reader has a frame, and need not know yet
    return setTimeout(prefetch, PAUSES[2]);
  })();
  return fetching;
}

// `newest` is false if a reading was on its way meanwhile, whose answer knows the progress better.
function heard({ progress: now, notes: told }, newest = true) {
  if (!pending.length) trouble(null);
  if (now && newest) progress(now);
  notes(told ?? []);
}

function forget() {
  if (fetching) fetching.stop = true;
  fetching = null;
  if (ready?.url) URL.revokeObjectURL(ready.url);
  ready = null;
}

// ---- from frame to frame

function show(one) {
  view = one;
  view.effort.last = view.since = performance.now();
  group = '';
  $('desk').hidden = false;
  $('empty').hidden = true;
  openStage();
  changed();
  performance.mark('shown');
}

// The next frame, if there is one at hand; otherwise as soon as it comes.
function arrive() {
  const one = aside.pop();
  if (one) {
    show(one);
  } else if (ready?.frame && !ready.error) {
    const next = ready;
    ready = null;
    show(next);
  } else if (ready?.error) {
    passed.add(ready.frame.id);
    hold({ view: ready, kind: 'gone', error: ready.error });
    forget();
    prefetch();
  } else if (ready?.empty) {
    const { empty } = ready;
    ready = null;
    if (passed.size && !pending.length) {
      passed.clear(); // what was skipped comes again
      prefetch();
      return;
    }
    if (pending.length) return void sending?.then(() => { if (!view) prefetch(); });
    const taken = queue === 'order' && empty.progress.left > held.length;
    blank(say('empty'), say(taken ? 'empty_taken' : 'empty_hint'));
    if (taken) setTimeout(() => { if (!view && !fetching) prefetch(); }, PAUSES.at(-1));
    return;
  } else if (ready?.failed) {
    const { failed } = ready;
    ready = null;
    trouble(failed);
    blank(say('loading'));
    setTimeout(() => { if (!view) prefetch(); }, PAUSES[1]);
    return;
  } else {
    blank(say('loading'));
    if (!fetching && pending.length) return void sending?.then(() => { if (!view) prefetch(); });
  }
  prefetch();
}

function blank(title, hint = '') {
  $('desk').hidden = Boolean(!view);
  $('empty').hidden = Boolean(view);
  $('empty').querySelector('h2').textContent = title;
  $('empty').querySelector('p').textContent = hint;
}

function save() {
  if (!view || busy || stage.drag || performance.now() - view.since < GLANCE) return;
  if (!view.regions.length && !view.verdict) {
    if (!view.proposals.length || view.unsure || view.candidates) {
      $('hint').textContent = say(view.unsure ? 'hint_unsure' : 'hint_first');
      $('hint').classList.add('strong');
      return;
    }
    accept(0);
  }
  spend();
  const one = view;
  const { milliseconds, pointer, keys } = one.effort;
  kept.delete(one.frame.id);
  kept.set(one.frame.id, structuredClone({ regions: one.regions, verdict: one.verdict, side: one.side, selected: one.selected }));
  pending.push({ view: one, reading: spoken(one), effort: { seconds: Math.round(milliseconds / 100) / 10, pointer, keys } });
  passed.delete(one.frame.id);
  count += 1;
  performance.mark('saved');
  if (kept.size > 30) kept.delete(kept.keys().next().value);
  view = null;
  arrive();
  send();
}

function pass() {
  if (!view || busy || stage.drag) return;
  passed.add(view.frame.id);
  if (dirty(view)) hold({ view, kind: 'passed', error: '' });
  else URL.revokeObjectURL(view.url);
  view = null;
  arrive();
}

const REFUSED = { 400: 'refused', 403: 'refused', 404: 'gone', 409: 'stale', 410: 'gone', 413: 'refused', 422: 'refused' };

function send() {
  sending ??= deliver().finally(() => { sending = null; prefetch(); });
  return sending;
}

async function deliver() {
  let tries = 0;
  while (pending.length) {
    const item = pending[0];
    item.flying = true;
    const answer = await ask('/api/reading', { id: item.view.frame.id, queue: item.view.queue, base: item.view.base, reading: item.reading, effort: item.effort });
    item.flying = false;
    if (pending[0] !== item) continue;
    if (answer.status === 200) {
      pending.shift();
      tries = 0;
      trouble(null);
      if (answer.body.progress) progress(answer.body.progress);
      tell(say('said_saved'));
      URL.revokeObjectURL(item.view.url);
    } else if (REFUSED[answer.status]) {
      pending.shift();
      hold({ ...item, kind: REFUSED[answer.status], error: answer.body.error ?? '', current: answer.body.current ?? null, base: answer.body.base });
    } else {
      trouble(answer);
      if (answer.status === 401) await renew();
      await new Promise((done) => { wake = done; setTimeout(done, PAUSES[Math.min(tries, PAUSES.length - 1)]); });
      tries += 1;
    }
  }
}
const retry = async () => { await renew(); wake(); if (!view) prefetch(); };
$('again').addEventListener('click', retry);
addEventListener('online', retry);

async function undo() {
  if (busy || stage.drag) return;
  if (view?.past.length) {
    view.kind = '';
    restore(view.past.pop());
    tell(say('said_undone'));
    return;
  }
  busy = true;
  try {
    if (pending.length && $('line').hidden) await sending;
    const last = pending.at(-1);
    if (last && !last.flying) { // it has not left this window yet
      pending.pop();
      trouble(pending.length ? undefined : null);
      back(last.view);
      return;
    }
    if (pending.length) return;
    const answer = await ask('/api/undo', {});
    if (answer.status !== 200) {
      tell(answer.body.error || say('said_nothing'));
      $('hint').textContent = answer.body.error || say('said_nothing');
      return;
    }
    await revisit(answer.body.id, answer.body.queue, kept.get(answer.body.id));
  } finally {
    busy = false;
  }
}

function back(one) {
  if (view) aside.push(view);
  show(Object.assign(one, { unsaved: true, past: [] }));
  tell(say('said_back'));
}

// Opens a certain frame; `state` is what this window remembers of it, `more` what else to change.
async function revisit(id, from, state = null, more = {}) {
  const answer = await ask(`/api/next?${new URLSearchParams({ queue: from, id })}`);
  if (answer.status !== 200 || !answer.body.frame) {
    if (!view) prefetch();
    trouble(answer.status === 200 ? undefined : answer);
    return;
  }
  const one = await opened(answer.body);
  heard(answer.body);
  if (one.failed) {
    trouble(one.failed);
    if (!view) prefetch();
    return;
  }
  if (one.error) {
    hold({ view: one, kind: 'gone', error: one.error });
    return;
  }
  if (ready?.frame?.id === id) forget();
  if (state) Object.assign(one, structuredClone(state), { unsaved: true });
  back(Object.assign(one, more, { unsaved: Boolean(state) }));
}

function turn(to) {
  if (busy || to === queue) return;
  queue = to;
  passed.clear();
  forget();
  if (view && dirty(view)) hold({ view, kind: 'passed', error: '' });
  view = null;
  for (const one of aside.splice(0)) if (dirty(one)) hold({ view: one, kind: 'passed', error: '' });
  bar();
  blank(say('loading'));
  const start = () => { prefetch(); };
  if (sending && $('line').hidden) sending.then(start);
  else start();
}

// ---- trouble

function trouble(answer) {
  if (answer === undefined) return;
  $('line').hidden = answer === null;
  if (answer === null) return;
  const count = pending.length;
  const error = answer.body?.error || say('error_network');
  $('line').querySelector('p').textContent = answer.status === 401 ? say('line_login', { count }) : answer.status === 0 ? say('line_offline', { count }) : count ? say('line_server', { error, count }) : say('line_next', { error });
}

function hold(item) {
  held.push(item);
  drawHeld();
}

function drawHeld() {
  const drop = (item) => { held.splice(held.indexOf(item), 1); drawHeld(); };
  $('held').replaceChildren(...held.map((item) => {
    const node = document.createElement('div');
    node.className = 'warn';
    node.dataset.kind = item.kind;
    const text = document.createElement('p');
    const told = ['stale', 'passed'].includes(item.kind) ? [say(`held_${item.kind}`)] : [item.reading ? say('held_refused') : '', item.error];
    text.textContent = [`${say('frame', item.view.frame)}:`, ...told].filter(Boolean).join(' ');
    const buttons = document.createElement('div');
    buttons.className = 'buttons';
    if (item.kind === 'gone' && item.reading) buttons.append(button(say('held_again'), () => { drop(item); pending.push(item); send(); }));
    else if (item.kind !== 'gone') buttons.append(button(say('held_show'), () => { drop(item); reopen(item); }));
    buttons.append(button(say(item.reading || item.kind === 'passed' ? 'held_drop' : 'close'), () => { drop(item); stage.svg?.focus({ preventScroll: true }); }));
    node.append(text, buttons);
    return node;
  }));
}

function reopen({ view: one, kind, current, base }) {
  passed.delete(one.frame.id);
  if (ready?.frame?.id === one.frame.id) forget();
  if (kind === 'stale') {
    one.base = base ?? one.base;
    // beside the own reading stands the one that is saved
    one.candidates = current ? [{ name: say('candidate_mine'), reading: spoken(one) }, { name: say('candidate_saved'), reading: current }] : null;
  }
  back(one);
}

addEventListener('beforeunload', (event) => {
  if (pending.length || held.some((one) => one.reading || one.kind === 'passed') || (view && dirty(view)) || aside.some(dirty)) event.preventDefault();
});
