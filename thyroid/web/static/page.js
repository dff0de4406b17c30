// The form works without this script. With it, boxes are drawn, clips are opened and the answer comes without leaving the page.
// shapes.js stands before it in the same module.
const limits = JSON.parse($('limits').textContent);
const form = $('form');
const views = []; // {file, blob, url, width, height, roi: [x, y, w, h] | null, clip: {frame, frames, regions} | null,
// origin: 'own' | 'accepted' (of roi), accepted: number of the proposal, found: answer of /locate | 'asked' | null, domain: '' | 'frame'}
let chosen = 0;
let patient = 0; // changes with "New patient": files that are still being opened for an earlier patient are dropped
let opening = 0;
let dragging = false;
let asking = null;
const locates = form.dataset.locates === 'yes'; // whether the model proposes boxes, as far as the page knows

// ---- files in

function complain(sentences) {
  const box = document.createElement('div');
  box.className = 'error';
  const title = document.createElement('h2');
  title.textContent = say('error');
  box.append(title);
  for (const sentence of sentences) {
    const line = document.createElement('p');
    line.textContent = sentence;
    box.append(line);
  }
  $('alerts').replaceChildren(box);
  $('alerts').focus();
  $('alerts').scrollIntoView({ block: 'nearest' });
}

// A page that was open all day has a token that is no longer accepted.
async function renew() {
  const answer = await fetch('/token').catch(() => null);
  if (answer?.ok) form.elements.csrf_token.value = (await answer.json()).token;
  return Boolean(answer?.ok);
}

const isDicom = async (file) => new TextDecoder('latin1').decode(await file.slice(128, 132).arrayBuffer()) === 'DICM';

async function picture(file, frame, again = true) {
  const body = new FormData();
  body.append('csrf_token', form.elements.csrf_token.value);
  body.append('file', file);
  if (frame) body.append('frame', frame);
  let answer;
  busyOpening(1);
  try {
    answer = await fetch('/picture', { method: 'POST', body });
  } catch {
    throw new Error(say('error_network'));
  } finally {
    busyOpening(-1);
  }
  if (again && answer.headers.get('x-token') && (await renew())) return picture(file, frame, false);
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    throw new Error(told.error || say('error_network'));
  }
  const number = (name) => Number(answer.headers.get(name));
  return { blob: await answer.blob(), clip: { frame: number('x-frame'), frames: number('x-frames'), regions: number('x-regions') === 1 } };
}

function busyOpening(change) {
  opening += change;
  $('status').textContent = opening ? say('opening') : '';
  $('status').className = opening ? 'toast' : 'unseen';
  $('analyse').disabled = opening > 0 || asking !== null;
}

async function open(file) {
  const values = { name: file.name };
  if (!file.size) throw new Error(say('error_empty', values));
  if (file.size > limits.bytes) throw new Error(say('error_large', { ...values, megabytes: Math.round(file.size / 1e6), limit: limits.bytes / 1e6 }));
  const view = { file, blob: file, roi: null, clip: null, origin: '', found: null, domain: '' };
  let start;
  let dicom;
  try {
    start = new Uint8Array(await file.slice(0, 4).arrayBuffer());
    dicom = await isDicom(file);
  } catch { // a folder
    throw new Error(say('error_kind', values));
  }
  const known = (start[0] === 0xff && start[1] === 0xd8) || (start[0] === 0x89 && start[1] === 0x50);
  if (!known && !dicom) throw new Error(say('error_kind', values));
  if (!known) Object.assign(view, await picture(file));
  await measure(view, file.name);
  return view;
}

async function measure(view, name) {
  const url = URL.createObjectURL(view.blob);
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch {
    URL.revokeObjectURL(url);
    throw new Error(say('error_damaged', { name }));
  }
  if (view.url) URL.revokeObjectURL(view.url);
  Object.assign(view, { url, width: image.naturalWidth, height: image.naturalHeight });
  const { width, height } = view;
  if (Math.min(width, height) < limits.min || Math.max(width, height) > limits.side || width * height > limits.max * 1e6) {
    throw new Error(say('error_size', { ...limits, name, width, height }));
  }
}

let adding = Promise.resolve();
function add(files) {
  const mine = patient;
  adding = adding.then(() => take(files, mine)); // one after the other, because the limit counts them all
  return adding;
}

async function take(files, mine) {
  if (!files.length || mine !== patient) return;
  $('alerts').replaceChildren();
  if (views.length + files.length > limits.views) {
    complain([say('error_many', { count: views.length + files.length, views: limits.views })]);
    return;
  }
  const wrong = [];
  const first = views.length;
  for (const file of files) {
    try {
      const view = await open(file);
      if (mine !== patient) return;
      views.push(view);
      propose(view);
    } catch (error) {
      wrong.push(error.message);
    }
  }
  if (mine !== patient) return;
  if (views.length > first) {
    if (!dragging) chosen = first;
    changed();
  }
  if (!dragging) show();
  if (wrong.length) complain(wrong);
}

$('files').addEventListener('change', async (event) => {
  const files = [...event.target.files];
  event.target.value = '';
  await add(files);
});
for (const name of ['dragenter', 'dragover']) addEventListener(name, (event) => {
  event.preventDefault();
  document.body.classList.add('over');
});
for (const name of ['dragleave', 'drop']) addEventListener(name, (event) => {
  event.preventDefault();
  if (name === 'drop' || !event.relatedTarget) document.body.classList.remove('over');
});
addEventListener('drop', (event) => add([...event.dataTransfer.files]));
$('sample').hidden = false;
$('sample').addEventListener('click', async () => {
  const answer = await fetch('/sample').catch(() => null);
  if (!answer?.ok) {
    complain([say('error_network')]);
    return;
  }
  const roi = answer.headers.get('x-roi').split(',').map(Number);
  await add([new File([await answer.blob()], 'sample.jpg', { type: 'image/jpeg' })]);
  if (views[chosen] && !locates) setBox(roi);
});

// ---- proposed boxes

const PAUSES = [1000, 3000]; // milliseconds before a busy model is asked again

let locating = Promise.resolve();
function propose(view) {
  if (!locates) return;
  const { blob, domain } = view;
  const obsolete = () => !views.includes(view) || view.blob !== blob || view.domain !== domain;
  view.found = 'asked';
  locating = locating.then(async () => { // one after the other, so that readings do not wait
    if (obsolete()) return;
    const found = await located(view).catch(() => null);
    if (obsolete()) return;
    view.found = found || { source: 'failed', proposals: [] };
    has(view);
    if (views[chosen] === view && $('views').children.length === views.length) place();
  });
}

async function located(view, pauses = PAUSES, again = true) {
  const body = new FormData();
  body.append('csrf_token', form.elements.csrf_token.value);
  body.append('domain', view.domain);
  body.append('file', view.blob, view.file.name);
  const answer = await fetch('/locate', { method: 'POST', body });
  if (again && answer.headers.get('x-token') && (await renew())) return located(view, pauses, false);
  if (answer.status === 503 && pauses.length) {
    await new Promise((done) => { setTimeout(done, pauses[0]); });
    return located(view, pauses.slice(1), again);
  }
  return answer.ok ? answer.json() : null;
}

const proposals = (view) => view.found?.proposals ?? [];

function accept(number) {
  const one = proposals(views[chosen])[number];
  if (!one) return;
  views[chosen].accepted = number + 1;
  setBox(one.box, 'accepted');
  $('stage').querySelector('.roi').focus({ preventScroll: true });
}

function back() {
  setBox(null);
  ($('proposals').querySelector('button') || $('clear').closest('details').querySelector('summary')).focus({ preventScroll: true });
}

addEventListener('keydown', (event) => {
  const { key, target } = event;
  const view = views[chosen];
  if (!view || asking || event.repeat || event.ctrlKey || event.metaKey || event.altKey || target.closest('#result, header, footer')) return;
  if (key === 'Escape' && view.roi && proposals(view).length) {
    back();
  } else if (key === 'Enter' && !view.roi && proposals(view).length && !target.closest('a, button, input, select, summary')) {
    accept(0);
  } else if (/^[1-3]$/.test(key) && proposals(view)[key - 1] && !(view.roi && view.origin === 'own') && !target.closest('input, select')) {
    accept(key - 1);
  } else {
    return;
  }
  event.preventDefault();
});

const join = (...sentences) => sentences.filter(Boolean).join(' ');

let told = ''; // a live region is read aloud again when it is written again
function tell(view) {
  const { found } = view;
  const boxes = proposals(view);
  const draw = say('proposal_draw');
  const hint = document.createElement('span');
  hint.className = 'keys';
  let text = '';
  let buttons = [];
  if (view.roi) {
    if (boxes.length) text = view.origin === 'accepted' ? say('proposal_accepted', { number: view.accepted }) : say('proposal_own');
    if (boxes.length) buttons = [() => button(say('proposal_back'), back)];
  } else if (found === 'asked') {
    text = join(say('proposal_asked'), draw);
  } else if (boxes.length) {
    text = found.unsure ? say('proposal_unsure') : join(say('proposal_best', boxes[0]), say('proposal_tap'), draw);
    if (!found.unsure) hint.textContent = boxes.length > 1 ? say('proposal_keys', { count: boxes.length }) : say('proposal_key');
    buttons = boxes.map((one, index) => () => (
      button(say('proposal_accept', { number: index + 1, share: one.share }), () => accept(index), index || found.unsure ? 'quiet' : 'primary')));
  } else if (found?.source === 'whole') {
    text = say('proposal_crop');
    buttons = [() => button(say('proposal_frame'), () => { const now = views[chosen]; now.domain = 'frame'; propose(now); changed(); place(); })];
  } else if (found?.source === 'failed') {
    text = say('proposal_none');
  }
  const now = JSON.stringify([views.indexOf(view), text, buttons.length, boxes]);
  if (now === told) return;
  told = now;
  $('proposals').hidden = !text;
  $('proposals').classList.toggle('warn', Boolean(found?.unsure && !view.roi));
  $('proposal-text').replaceChildren(text, ...(hint.textContent ? [' ', hint] : []));
  $('proposals').querySelector('.buttons').replaceChildren(...buttons.map((make) => make()));
}

function drawProposals(picture, view, scale) {
  const shown = view.roi ? [] : proposals(view).map((one, index) => ({ ...one, index }));
  shown.sort((one, other) => other.box[2] * other.box[3] - one.box[2] * one.box[3]); // the small ones stay within reach
  picture.querySelector('.proposed').replaceChildren(...shown.flatMap(({ box: [x, y, width, height], index, share }) => {
    const size = 15 * scale;
    const name = draw('text', { x: x + 10 * scale, y: y > 1.5 * size ? y - 6 * scale : y + 1.4 * size, 'font-size': size, 'stroke-width': 3 * scale });
    name.textContent = `${index + 1} · ${share}`;
    return [draw('rect', { class: index ? 'proposal' : 'proposal best', 'data-proposal': index, x, y, width, height }), name];
  }));
}

// ---- pictures and boxes

function show() {
  const some = views.length > 0;
  $('drop').hidden = some;
  for (const id of ['desk', 'go']) $(id).hidden = !some;
  $('steps').hidden = some;
  chosen = Math.min(chosen, Math.max(0, views.length - 1));
  const focused = document.activeElement?.closest?.('#views') ? document.activeElement.className : null;
  $('views').replaceChildren(...views.map((view, index) => {
    const item = document.createElement('li');
    const button = document.createElement('button');
    button.type = 'button';
    button.className = 'thumb';
    button.setAttribute('aria-pressed', index === chosen);
    const image = document.createElement('img');
    image.src = view.url;
    image.alt = '';
    const name = document.createElement('span');
    name.textContent = say('view', { number: index + 1 });
    const state = document.createElement('span');
    state.className = 'has';
    button.append(image, name, state);
    button.addEventListener('click', () => { chosen = index; show(); });
    const gone = document.createElement('button');
    gone.type = 'button';
    gone.className = 'gone';
    gone.textContent = '×';
    gone.setAttribute('aria-label', say('remove', { number: index + 1 }));
    gone.addEventListener('click', () => {
      URL.revokeObjectURL(view.url);
      views.splice(index, 1);
      changed();
      show();
      (views.length ? $('views').querySelector('[aria-pressed="true"]') : $('files')).focus();
    });
    item.append(button, gone);
    return item;
  }));
  for (const view of views) has(view);
  if (focused) $('views').children[chosen]?.querySelector(`.${focused}`)?.focus();
  if (some) stage(views[chosen]);
}

function has(view) {
  const state = $('views').children[views.indexOf(view)]?.querySelector('.has');
  if (!state) return;
  const drawn = view.origin === 'accepted' ? 'box_accepted' : 'box_there';
  state.textContent = say(view.roi ? drawn : proposals(view).length ? 'box_proposed' : 'box_missing');
  state.classList.toggle('yes', Boolean(view.roi));
}

function stage(view) {
  const picture = draw('svg', { viewBox: `0 0 ${view.width} ${view.height}`, role: 'group', 'aria-label': say('stage') });
  picture.append(draw('image', { href: view.url, width: view.width, height: view.height }));
  const box = draw('rect', { class: 'roi', tabindex: 0, role: 'img', 'aria-label': say('box'), 'aria-describedby': 'stage-hint' });
  picture.append(draw('g', { class: 'proposed', 'aria-hidden': true }), box, ...grips());
  $('stage').replaceChildren(picture);
  pointers(picture, box);
  box.addEventListener('keydown', keys);
  place();
  const clip = view.clip;
  $('clip-note').hidden = !clip;
  if (clip) $('clip-note').textContent = say(clip.regions ? 'dicom_cleared' : 'dicom_check');
  $('clip').hidden = !clip || clip.frames < 2;
  if (clip) {
    const range = $('clip').querySelector('input');
    range.max = clip.frames;
    range.value = clip.frame;
    $('clip').querySelector('span').textContent = say('frame', clip);
  }
}

function place() {
  const view = views[chosen];
  const picture = $('stage').querySelector('svg');
  const [x, y, width, height] = view.roi || [0, 0, 0, 0];
  const box = picture.querySelector('.roi');
  for (const [key, value] of Object.entries({ x, y, width, height })) box.setAttribute(key, value);
  box.style.display = view.roi ? '' : 'none';
  const scale = view.width / (picture.getBoundingClientRect().width || view.width);
  drawProposals(picture, view, scale);
  const around = held(view);
  for (const grip of picture.querySelectorAll('.grip')) seat(grip, around, scale);
  for (const [name, value, most] of [['x', x, view.width], ['y', y, view.height], ['width', width, view.width], ['height', height, view.height]]) {
    const input = $(`box-${name}`);
    input.max = most;
    if (document.activeElement !== input) input.value = view.roi ? value : '';
  }
  has(view);
  tell(view);
}

// The box that has grips: a proposal is corrected by its corners, too.
const held = (view) => view.roi ?? proposals(view)[0]?.box;

// A result on the page belongs to the pictures as they were sent.
function changed() {
  const reading = $('result').querySelector('.reading');
  if (!reading || reading.classList.contains('stale')) return;
  reading.classList.add('stale');
  const note = document.createElement('p');
  note.className = 'warn paper-not';
  note.textContent = say('stale');
  reading.querySelector('h2').after(note);
}

function setBox(roi, origin = 'own') {
  const view = views[chosen];
  changed();
  view.origin = roi ? origin : '';
  if (!roi) {
    view.roi = null;
  } else {
    view.roi = fitted(roi, view);
  }
  place();
}

function pointers(picture, box) {
  let drag = null;
  const at = (event) => pixel(picture, event, views[chosen]);
  picture.addEventListener('pointerdown', (event) => {
    if (event.button) return;
    const [x, y] = at(event);
    const corner = event.target.dataset?.corner;
    const { roi, origin } = views[chosen];
    if (corner) {
      drag = { fixed: opposite(corner, held(views[chosen])) };
    } else if (event.target === box) {
      drag = { offset: [x - roi[0], y - roi[1]] };
    } else {
      drag = { fixed: [x, y], before: roi, origin, proposal: event.target.dataset?.proposal };
    }
    picture.setPointerCapture(event.pointerId);
    dragging = true;
    event.preventDefault();
  });
  picture.addEventListener('pointermove', (event) => {
    if (!drag) return;
    const [x, y] = at(event);
    if (drag.offset) {
      const roi = views[chosen].roi;
      setBox([x - drag.offset[0], y - drag.offset[1], roi[2], roi[3]]);
    } else {
      const scale = views[chosen].width / picture.getBoundingClientRect().width;
      drag.moved = drag.moved || Math.hypot(x - drag.fixed[0], y - drag.fixed[1]) > still(event, scale);
      if (!drag.moved) return;
      setBox(between(drag.fixed, [x, y]));
    }
  });
  const end = (event) => {
    if (!drag) return;
    const { roi } = views[chosen];
    // a slip of the hand does not replace an existing box
    const slip = drag.before !== undefined && drag.moved && Math.min(roi[2], roi[3]) < limits.box;
    if (slip) setBox(drag.before, drag.origin);
    const taken = event.type === 'pointerup' && (slip || !drag.moved) ? drag.proposal : undefined;
    drag = null;
    dragging = false;
    if (taken !== undefined) accept(Number(taken));
    if ($('views').children.length !== views.length) show(); // something was opened meanwhile
  };
  picture.addEventListener('pointerup', end);
  picture.addEventListener('pointercancel', end);
}

function keys(event) {
  const step = ARROWS[event.key];
  const roi = views[chosen].roi;
  if (!roi) return;
  if (event.key === 'Delete' || event.key === 'Backspace') {
    back();
  } else if (step) {
    setBox(nudged(roi, step, event, views[chosen]));
  } else {
    return;
  }
  event.preventDefault();
}

form.noValidate = true; // a number that is out of bounds, hidden in closed details, would keep the form from being sent
for (const name of ['x', 'y', 'width', 'height']) {
  const input = $(`box-${name}`);
  input.addEventListener('input', () => {
    const values = ['x', 'y', 'width', 'height'].map((side) => Number($(`box-${side}`).value));
    if (values[2] > 0 && values[3] > 0) setBox(values);
  });
  input.addEventListener('blur', () => { if (views[chosen]?.roi) place(); });
  input.addEventListener('keydown', (event) => { if (event.key === 'Enter') event.preventDefault(); });
}
$('clear').addEventListener('click', () => setBox(null));
$('clip').querySelector('input').addEventListener('change', async (event) => {
  const view = views[chosen];
  const wanted = event.target.value;
  view.wanted = wanted;
  try {
    const shown = await picture(view.file, wanted);
    // a later choice, or another patient, makes this answer obsolete
    if (view.wanted !== wanted || !views.includes(view)) return;
    const { width, height } = view;
    Object.assign(view, shown);
    await measure(view, view.file.name);
    // an accepted proposal is of the frame that it was made for
    if (view.width !== width || view.height !== height || view.origin === 'accepted') Object.assign(view, { roi: null, origin: '' });
    propose(view);
    changed();
  } catch (error) {
    complain([error.message]);
  }
  show();
  if (views[chosen] === view) $('clip').querySelector('input').focus();
});
$('clip').querySelector('input').setAttribute('aria-label', say('frame_choose'));
addEventListener('resize', () => { if (views.length) place(); });

// ---- the answer

function busy(text) {
  const on = text !== null;
  $('progress').hidden = !on;
  $('analyse').disabled = on || opening > 0;
  $('form').setAttribute('aria-busy', on);
  if (on) {
    $('progress').querySelector('p').textContent = text;
    $('status').textContent = text;
  }
}

form.addEventListener('submit', (event) => {
  event.preventDefault();
  if (asking || opening) return;
  $('alerts').replaceChildren();
  $('result').replaceChildren();
  if (!views.length) {
    complain([say('error_none')]);
    return;
  }
  if (views.reduce((sum, view) => sum + view.blob.size, 0) > limits.total) {
    complain([say('error_total', { limit: limits.total / 1e6 })]);
    return;
  }
  send(views.map((view) => ({ ...view }))); // as they are now: the strip may change while the answer is on its way
});

const columns = () => form.querySelectorAll('[name^="clinical."]');
for (const field of columns()) field.addEventListener('input', changed);

function send(sent, again = true) {
  const body = new FormData();
  body.append('csrf_token', form.elements.csrf_token.value);
  for (const view of sent) {
    body.append('files', view.blob, view.file.name);
    body.append('roi', view.roi ? view.roi.join(',') : '');
    body.append('origin', view.origin);
    body.append('domain', view.domain);
  }
  for (const field of columns()) body.append(field.name, field.value);
  const request = new XMLHttpRequest(); // fetch does not report how much was sent
  asking = request;
  const bar = $('progress').querySelector('progress');
  bar.removeAttribute('value');
  busy(say('sending'));
  request.upload.addEventListener('progress', (sent) => { if (sent.lengthComputable) bar.value = sent.loaded / sent.total; });
  request.upload.addEventListener('load', () => { bar.removeAttribute('value'); busy(say('reading')); });
  request.addEventListener('loadend', () => { asking = null; busy(null); });
  request.addEventListener('error', () => complain([say('error_network')]));
  request.addEventListener('abort', () => { $('status').textContent = say('cancelled'); });
  request.addEventListener('load', async () => {
    if (again && request.getResponseHeader('x-token') && (await renew())) {
      send(sent, false);
    } else if (!request.getResponseHeader('content-type')?.startsWith('text/html')) {
      complain([say('error_network')]);
    } else if (request.status === 200) {
      $('result').innerHTML = request.responseText;
      dress($('result'), sent);
      $('analyse').textContent = say('again');
      $('status').textContent = say('done');
      $('result').focus({ preventScroll: true });
      $('result').scrollIntoView();
    } else {
      $('alerts').innerHTML = request.responseText;
      $('alerts').focus();
      $('alerts').scrollIntoView({ block: 'nearest' });
    }
  });
  request.open('POST', form.action);
  request.setRequestHeader('x-requested-with', 'fetch');
  request.send(body);
}
$('cancel').addEventListener('click', () => {
  asking?.abort();
  $('analyse').focus();
});
$('restart').addEventListener('click', () => {
  patient += 1;
  for (const field of columns()) field.value = '';
  asking?.abort();
  for (const view of views.splice(0)) URL.revokeObjectURL(view.url);
  giveBack();
  $('result').replaceChildren();
  $('alerts').replaceChildren();
  $('analyse').textContent = say('analyse');
  show();
  $('files').focus();
});

const lent = []; // URLs of the pictures in the result
const giveBack = () => { for (const url of lent.splice(0)) URL.revokeObjectURL(url); };

function dress(result, sent) {
  giveBack();
  for (const picture of result.querySelectorAll('.picture svg')) {
    const view = sent[Number(picture.dataset.view)];
    lent.push(URL.createObjectURL(view.blob));
    picture.querySelector('.scan').setAttribute('href', lent.at(-1));
  }
  for (const slider of result.querySelectorAll('.slider')) {
    slider.hidden = false;
    slider.querySelector('input').addEventListener('input', (event) => {
      for (const heat of slider.closest('.answer').querySelectorAll('.heat')) heat.setAttribute('opacity', event.target.value / 100);
    });
  }
  const note = result.querySelector('.note');
  note.hidden = false;
  note.classList.add('empty');
  note.querySelector('input').addEventListener('input', (event) => note.classList.toggle('empty', !event.target.value));
  const print = result.querySelector('[data-act="print"]');
  print.hidden = false;
  print.addEventListener('click', () => window.print());
}
addEventListener('beforeunload', (event) => {
  if (views.length && !$('result').querySelector('.reading')) event.preventDefault(); // pictures that have not been read yet
});
performance.mark('interactive');
