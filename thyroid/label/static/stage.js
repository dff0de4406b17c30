// The frame on the stage: nodules, proposals and candidates over the picture, pointers and zoom. label.js stands after it.
const LEAST = 4; // pixels of a side below which a drawn box is a slip of the hand
const CLOSEST = 12; // largest zoom

const stage = {
  svg: null, layers: {}, drag: null, fingers: new Map(), seen: null, // seen: the part of the frame that is shown, x, y, width, height
};

function openStage() {
  const { frame, url } = view;
  const svg = draw('svg', { role: 'group', 'aria-label': say('stage'), tabindex: -1, id: 'picture' });
  const layers = { candidates: draw('g', { 'aria-hidden': true }), proposed: draw('g', { class: 'proposed', 'aria-hidden': true }), regions: draw('g'), grips: draw('g', { 'aria-hidden': true }) };
  layers.grips.append(...grips());
  svg.append(draw('image', { href: url, width: frame.width, height: frame.height }), ...Object.values(layers));
  Object.assign(stage, { svg, layers, drag: null, seen: [0, 0, frame.width, frame.height] });
  stage.fingers.clear();
  $('stage').replaceChildren(svg);
  listen(svg);
  zoomTo(stage.seen);
  svg.focus({ preventScroll: true });
}

// Pixels of the frame per pixel of the screen.
const scaleOf = () => 1 / (stage.svg.getScreenCTM()?.a || 1);

const tag = (text, [x, y, width], scale, kind, right = false) => {
  const size = 15 * scale;
  const node = draw('text', { class: `tag ${kind}`, x: right ? x + width - 4 * scale : x + 4 * scale, y: y > 1.4 * size ? y - 5 * scale : y + 1.2 * size, 'font-size': size, 'stroke-width': 3 * scale, 'text-anchor': right ? 'end' : 'start' });
  node.textContent = text;
  return node;
};
const styleOf = (index) => 'abc'[Math.min(index, 2)]; // more than three readings of a frame are rare
const rect = (kind, [x, y, width, height], more = {}) => draw('rect', { class: kind, x, y, width, height, ...more });

function drawStage() {
  if (!view) return;
  const { layers } = stage;
  const scale = scaleOf();
  const focused = layers.regions.contains(document.activeElement);
  layers.candidates.replaceChildren(...(view.candidates ?? []).flatMap(({ name, reading }, index) => (
    reading.regions.flatMap((one) => {
      const box = [one.x, one.y, one.width, one.height];
      return [rect(`candidate ${styleOf(index)}`, box), tag(name, box, scale, styleOf(index), index > 0)];
    }))));
  const shown = view.proposals.map((one, index) => ({ ...one, index })).filter(({ index }) => !view.regions.some((region) => region.proposal === index));
  shown.sort((one, other) => other.box[2] * other.box[3] - one.box[2] * one.box[3]); // the small ones stay within reach
  const settled = view.regions.length > 0 || view.verdict !== '';
  layers.proposed.replaceChildren(...shown.flatMap(({ box, index, probability }) => (
    [rect(`proposal${index || settled || view.unsure ? '' : ' best'}${settled ? ' other' : ''}`, box, { 'data-proposal': index }), tag(settled ? `${index + 1}` : `${index + 1} · ${percent(probability)}`, box, scale, '')])));
  layers.regions.replaceChildren(...view.regions.flatMap(({ box }, index) => {
    const [x, y, width, height] = box;
    const chosen = index === view.selected;
    const node = rect(`roi${chosen ? ' chosen' : ''}`, box, { 'data-region': index, tabindex: 0, role: 'img', 'aria-label': say('nodule_at', { number: index + 1, x, y, width, height }) });
    node.addEventListener('focus', () => { if (view.selected !== index && !stage.drag) select(index); });
    return view.regions.length > 1 ? [node, tag(index + 1, box, scale, 'mine')] : [node];
  }));
  const box = view.regions[view.selected]?.box ?? null;
  for (const grip of layers.grips.children) seat(grip, box, scale);
  if (focused) (layers.regions.querySelector(`[data-region="${view.selected}"]`) ?? stage.svg).focus({ preventScroll: true });
}

function zoomTo([x, y, width, height]) {
  const { frame } = view;
  const wide = Math.min(frame.width, Math.max(frame.width / CLOSEST, width));
  const high = wide * frame.height / frame.width;
  stage.seen = [Math.max(0, Math.min(frame.width - wide, x)), Math.max(0, Math.min(frame.height - high, y)), wide, high];
  stage.svg.setAttribute('viewBox', stage.seen.join(' '));
  stage.svg.classList.toggle('near', wide < frame.width);
  drawStage();
}

// By a factor around a point, which stays where it is.
function zoomBy(factor, [x, y] = centre()) {
  const [left, top, width, height] = stage.seen;
  const wide = Math.min(view.frame.width, Math.max(view.frame.width / CLOSEST, width / factor));
  const share = wide / width;
  zoomTo([x - (x - left) * share, y - (y - top) * share, wide, height * share]);
}

function centre() {
  const [x, y, width, height] = view.regions[view.selected]?.box ?? stage.seen;
  return [x + width / 2, y + height / 2];
}

function listen(svg) {
  svg.addEventListener('wheel', (event) => {
    event.preventDefault();
    zoomBy(Math.exp(-Math.max(-120, Math.min(120, event.deltaY)) / (event.ctrlKey ? 80 : 400)), pixel(svg, event, view.frame));
  }, { passive: false });
  svg.addEventListener('pointerdown', press);
  svg.addEventListener('pointermove', move);
  for (const name of ['pointerup', 'pointercancel']) svg.addEventListener(name, release);
}

const span = ([one, other]) => ({ apart: Math.hypot(one.x - other.x, one.y - other.y), x: (one.x + other.x) / 2, y: (one.y + other.y) / 2 });

function press(event) {
  if (event.button > 1 || busy) return;
  event.preventDefault();
  stage.svg.focus({ preventScroll: true });
  stage.svg.setPointerCapture(event.pointerId);
  if (event.pointerType === 'touch') stage.fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  if (stage.fingers.size === 2) {
    if (stage.drag?.before) restore(stage.drag.before);
    const between = span([...stage.fingers.values()]);
    stage.drag = { pinch: between, around: pixel(stage.svg, { clientX: between.x, clientY: between.y }, view.frame) };
    return;
  }
  if (stage.fingers.size > 2) return;
  const at = pixel(stage.svg, event, view.frame);
  const { corner, region, proposal } = event.target.dataset ?? {};
  if (event.button === 1 || (event.altKey && !corner)) {
    stage.drag = { pan: { x: event.clientX, y: event.clientY } };
  } else if (corner) {
    stage.drag = { kind: 'resize', index: view.selected, fixed: opposite(corner, view.regions[view.selected].box), from: at, before: snapshot() };
  } else if (region !== undefined) {
    const index = Number(region);
    select(index);
    const [x, y] = view.regions[index].box;
    stage.drag = { kind: 'move', index, offset: [at[0] - x, at[1] - y], from: at, before: snapshot() };
  } else {
    stage.drag = { kind: 'draw', index: -1, fixed: at, from: at, proposal, before: snapshot() };
  }
}

function move(event) {
  const { drag, fingers } = stage;
  if (fingers.has(event.pointerId)) fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  if (!drag) return;
  if (drag.pinch) {
    if (fingers.size === 2) pinch(drag, span([...fingers.values()]));
    return;
  }
  const scale = scaleOf();
  if (drag.pan) {
    const [x, y, width, height] = stage.seen;
    zoomTo([x - (event.clientX - drag.pan.x) * scale, y - (event.clientY - drag.pan.y) * scale, width, height]);
    drag.pan = { x: event.clientX, y: event.clientY };
    return;
  }
  const at = pixel(stage.svg, event, view.frame);
  drag.moved = drag.moved || Math.hypot(at[0] - drag.from[0], at[1] - drag.from[1]) > (drag.kind === 'draw' ? still(event, scale) : scale);
  if (!drag.moved) return;
  if (drag.kind === 'draw' && drag.index < 0) {
    view.verdict = '';
    view.regions.push({ box: [...drag.fixed, 1, 1], origin: 'drawn', features: {} });
    drag.index = view.selected = view.regions.length - 1;
  }
  const region = view.regions[drag.index];
  const box = drag.kind === 'move' ? [at[0] - drag.offset[0], at[1] - drag.offset[1], region.box[2], region.box[3]] : between(drag.fixed, at);
  setBox(drag.index, box);
}

function pinch(drag, now) {
  const factor = now.apart / (drag.pinch.apart || 1);
  const [, , width, height] = stage.seen;
  const wide = Math.min(view.frame.width, Math.max(view.frame.width / CLOSEST, width / factor));
  zoomTo([stage.seen[0], stage.seen[1], wide, height * wide / width]);
  // what was between the fingers stays between them
  const here = new DOMPoint(now.x, now.y).matrixTransform(stage.svg.getScreenCTM().inverse());
  zoomTo([stage.seen[0] + drag.around[0] - here.x, stage.seen[1] + drag.around[1] - here.y, stage.seen[2], stage.seen[3]]);
  drag.pinch = now;
}

function release(event) {
  const { drag } = stage;
  stage.fingers.delete(event.pointerId);
  if (!drag || (drag.pinch && stage.fingers.size)) return;
  stage.drag = null;
  if (drag.pinch || drag.pan) return;
  const region = view.regions[drag.index];
  const slip = drag.kind === 'draw' && drag.moved && Math.min(region.box[2], region.box[3]) < LEAST;
  if (slip || event.type === 'pointercancel') {
    restore(drag.before);
  } else if (drag.moved) {
    remember(drag.before);
  }
  if (event.type === 'pointerup' && (slip || !drag.moved)) {
    if (drag.proposal !== undefined) accept(Number(drag.proposal));
    else if (drag.kind === 'draw') select(-1);
  }
  changed();
}
