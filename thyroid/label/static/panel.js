// What stands beside the stage: the decision, features, candidates and progress; and the keys. label.js stands before it.
const pressed = (node, on) => node.setAttribute('aria-pressed', on);

function changed() {
  if (!view) return;
  drawStage();
  $('frame-title').textContent = say('frame', view.frame);
  hint();
  for (const node of document.querySelectorAll('[data-verdict]')) pressed(node, !view.regions.length && view.verdict === node.dataset.verdict);
  drawProposals();
  drawPanel();
  drawCandidates();
  $('suspect').hidden = !view.suspect;
  if (view.suspect) $('suspect').querySelector('p').textContent = say('suspect_text', { ...view.suspect, margin: view.suspect.margin.toFixed(2) });
}

function hint() {
  const count = view.regions.length;
  const on = touch.matches ? '_touch' : '';
  const name = group && (group === 'side' ? say('side') : say(`feature_${group}`));
  $('hint').classList.remove('strong');
  const text = name ? say('hint_group', { group: name })
    : count ? say(`hint_marked${on}`, { count })
      : view.verdict ? say(`hint_${view.verdict}`)
        : view.candidates ? say('hint_candidates')
          : !view.proposals.length ? say('hint_draw')
            : view.unsure ? say('hint_unsure') : say(`hint_best${on}`);
  if ($('hint').textContent !== text) $('hint').textContent = text; // a live region is read aloud again when it is written again
}

// Buttons are made once per frame, so that they keep the focus.
let made = null;
function drawProposals() {
  const box = $('proposals');
  if (made !== view) {
    box.replaceChildren(...view.proposals.map(({ probability }, index) => {
      const node = button(say('proposal', { number: index + 1, share: percent(probability) }), (event) => { accept(index); home(event); });
      node.append(' ', key(index + 1));
      return node;
    }));
    drawSides();
    drawTaking();
    made = view;
  }
  [...box.children].forEach((node, index) => pressed(node, view.regions.some((region) => region.proposal === index)));
  box.hidden = !view.proposals.length;
}

function drawSides() {
  const field = document.querySelector('[data-group="side"]');
  field.hidden = !(view.asks || view.suspect);
  field.querySelector('div').replaceChildren(...view.classes.map(({ name }, index) => {
    const node = document.createElement('button');
    node.type = 'button';
    node.dataset.value = name;
    node.append(key(index + 1), name);
    return node;
  }));
}

function drawPanel() {
  const region = view.regions[view.selected];
  $('panel-title').textContent = region ? (view.regions.length > 1 ? say('nodule_of', { number: view.selected + 1, count: view.regions.length }) : say('nodule', { number: 1 })) : say('nodule_none');
  $('panel').hidden = !view.regions.length;
  $('features').hidden = $('remove').hidden = !region;
  for (const field of document.querySelectorAll('[data-group]')) {
    const name = field.dataset.group;
    field.classList.toggle('asked', name === group);
    const value = name === 'side' ? [view.side] : kindsOf(region?.features[name]);
    // the model has looked at the best box; what it says of a feature is gone once the reader has said something
    const suggested = region?.proposal === 0 && !value.length ? kindsOf(view.suggested[name]) : [];
    for (const node of field.querySelectorAll('[data-value]')) {
      pressed(node, value.includes(node.dataset.value));
      node.classList.toggle('suggested', suggested.includes(node.dataset.value));
      node.title = suggested.includes(node.dataset.value) ? say('suggested_one') : '';
    }
  }
  $('suggested').hidden = !$('features').querySelector('.suggested');
  const chosen = [...$('features').querySelectorAll('fieldset')].map((field) => [...field.querySelectorAll('[aria-pressed="true"]')]);
  const full = chosen.every((nodes) => nodes.length);
  const sum = chosen.flat().reduce((total, node) => total + Number(node.dataset.points), 0);
  $('points').textContent = full ? say('points', { points: region.features.composition === 'spongiform' ? 0 : sum }) : say('points_missing');
}

const kindsOf = (value) => (value ? value.split('+') : []);
const words = (name, value) => kindsOf(value).map((one) => texts[`${name}_${one}`] ?? one).join(' + ') || '–';
const rows = ({ verdict, regions, side }) => {
  const largest = regions.reduce((most, one) => (one.width * one.height > (most ? most.width * most.height : 0) ? one : most), null);
  return [
    ['field_verdict', words('verdict', verdict)], ['field_nodules', String(regions.length)], ['side', side || '–'],
    ...['composition', 'echogenicity', 'shape', 'margin', 'foci'].map((name) => [`feature_${name}`, words(name, largest?.features[name])]),
  ];
};

function drawTaking() {
  $('candidates').hidden = !view.candidates;
  if (!view.candidates) return;
  $('candidates').querySelector('.pair').replaceChildren(...view.candidates.map(({ name }, index) => {
    const node = button(say('candidate_take', { name }), (event) => { take(index); home(event); });
    if (index < 2) node.append(' ', key('AB'[index])); // C is the key of the composition
    return node;
  }));
  const head = document.createElement('tr');
  head.append(document.createElement('td'), ...view.candidates.map(({ name }, index) => {
    const cell = document.createElement('th');
    cell.scope = 'col';
    const line = draw('svg', { viewBox: '0 0 26 8', 'aria-hidden': true });
    line.append(draw('line', { class: `candidate ${styleOf(index)}`, x1: 0, x2: 26, y1: 4, y2: 4 }));
    cell.append(line, name.length > 1 ? name : say('candidate', { name }));
    return cell;
  }));
  $('candidates').querySelector('thead').replaceChildren(head);
  const table = view.candidates.map(({ reading }) => rows(reading));
  $('candidates').querySelector('tbody').replaceChildren(...table[0].map(([label], index) => {
    const values = table.map((one) => one[index][1]);
    const line = document.createElement('tr');
    line.className = new Set(values).size > 1 ? 'differs' : '';
    const title = document.createElement('th');
    title.scope = 'row';
    title.textContent = say(label);
    line.append(title, ...values.map((value) => { const cell = document.createElement('td'); cell.textContent = value; return cell; }));
    return line;
  }));
}

function drawCandidates() {
  $('candidates').hidden = !view.candidates;
}

function progress({ done, of, contested, suspects, second, left, per_hour: pace, minutes_left: minutes }) {
  $('progress').hidden = false;
  const bar = $('progress').querySelector('progress');
  bar.max = Math.max(1, of);
  bar.value = done;
  const rounded = (value) => String(Math.round(value));
  $('progress').querySelector('p').textContent = [
    say('progress_done', { done, of }), pace && minutes !== null ? say('progress_pace', { per_hour: rounded(pace), minutes: rounded(minutes) }) : '',
  ].filter(Boolean).join(' · ');
  const counts = { order: left, second, adjudicate: contested, suspects };
  for (const node of $('queues').children) node.querySelector('.count').textContent = counts[node.dataset.queue] ? String(counts[node.dataset.queue]) : '';
}

function notes(sentences) {
  $('notes').replaceChildren(...sentences.map((sentence) => {
    const node = document.createElement('p');
    node.className = 'warn';
    node.textContent = sentence;
    return node;
  }));
}

function bar() {
  for (const node of $('queues').children) pressed(node, node.dataset.queue === queue);
}

// ---- buttons. After the mouse, or a finger, the keys belong to the frame again.

const home = (event) => { if (event.detail) stage.svg?.focus({ preventScroll: true }); };
for (const node of $('queues').children) node.addEventListener('click', () => turn(node.dataset.queue));
const on = (id, act) => $(id).addEventListener('click', (event) => { act(); home(event); });
on('save', save);
on('undo', undo);
on('pass', pass);
on('remove', remove);
$('help').addEventListener('click', () => $('help-box').showModal());
for (const node of document.querySelectorAll('[data-verdict]')) node.addEventListener('click', (event) => { if (view && !busy) decide(node.dataset.verdict); home(event); });
$('desk').addEventListener('click', (event) => {
  const node = event.target.closest('[data-value]');
  if (!node || !view || busy) return;
  choose(node.closest('[data-group]').dataset.group, node.dataset.value);
  home(event);
});
for (const node of document.querySelectorAll('[data-zoom]')) node.addEventListener('click', (event) => {
  zoomed(node.dataset.zoom);
  home(event);
});
const zoomed = (how) => { if (view) (how === 'all' ? zoomTo([0, 0, view.frame.width, view.frame.height]) : zoomBy(how === 'in' ? 1.5 : 1 / 1.5)); };
addEventListener('resize', () => { if (view) drawStage(); });

// ---- keys. Letters are told by their place, so that they work while Hangul is typed.

const letter = ({ key: name, code }) => (/^[a-z]$/i.test(name) ? `Key${name.toUpperCase()}` : code);

const COMMANDS = {
  KeyN: () => decide('none'), KeyU: () => decide('unusable'), KeyA: () => take(0), KeyB: () => take(1), KeyK: pass, Delete: remove, Backspace: remove, Equal: () => zoomed('in'), NumpadAdd: () => zoomed('in'), Minus: () => zoomed('out'), NumpadSubtract: () => zoomed('out'), Digit0: () => zoomed('all'), Numpad0: () => zoomed('all'),
};

function number(digit) {
  if (!group) return accept(digit - 1);
  const node = document.querySelectorAll(`[data-group="${group}"] [data-value]`)[digit - 1];
  if (node) choose(group, node.dataset.value);
  return undefined;
}

function arrows(event) {
  const step = ARROWS[event.key];
  const region = view.regions[view.selected];
  if (region) {
    remember(undefined, `arrow-${view.selected}`);
    setBox(view.selected, nudged(region.box, step, event, view.frame));
  } else {
    const [x, y, width, height] = stage.seen;
    zoomTo([x + step[0] * width / 10, y + step[1] * height / 10, width, height]);
  }
}

function act(event) {
  const code = letter(event);
  const name = GROUPS[code];
  const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code)?.[1];
  if (event.key === 'Enter' || event.key === ' ') {
    if (!event.repeat) save(); // a key that is held saves one frame, not many
  } else if (ARROWS[event.key]) {
    arrows(event);
  } else if (event.key === 'Escape') {
    group = '';
    select(-1);
  } else if (digit && !event.shiftKey) {
    number(Number(digit));
  } else if (name && (name === 'side' ? view.asks || view.suspect : view.regions[view.selected])) {
    group = group === name ? '' : name;
    changed();
  } else if (COMMANDS[code] && !event.repeat) {
    group = '';
    COMMANDS[code]();
  } else {
    return false;
  }
  return true;
}

addEventListener('keydown', (event) => {
  if (event.metaKey || event.altKey || $('help-box').open || event.target.closest('input, select, header, footer')) return;
  if (event.key === '?') {
    $('help-box').showModal();
  } else if (letter(event) === 'KeyZ') {
    if (!event.repeat) undo();
  } else if (!view || busy || (event.ctrlKey && !ARROWS[event.key]) || (['Enter', ' '].includes(event.key) && event.target.closest('button, a, summary'))) {
    return;
  } else if (!act(event)) {
    return;
  }
  event.preventDefault();
});

bar();
blank(say('loading'));
prefetch();
performance.mark('interactive');
