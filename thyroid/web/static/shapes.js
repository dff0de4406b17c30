// What the page and the labelling bench share: texts, buttons, SVG, and boxes [x, y, width, height] in pixels of a picture.
const $ = (id) => document.getElementById(id);
const texts = JSON.parse($('texts').textContent);
const say = (key, values = {}) => texts[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
const button = (label, act, kind = 'quiet') => {
  const node = document.createElement('button');
  node.type = 'button';
  node.className = `button ${kind}`;
  node.textContent = label;
  node.addEventListener('click', act);
  return node;
};
const SVG = 'http://www.w3.org/2000/svg';
const draw = (name, attributes = {}) => {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
};
const touch = matchMedia('(pointer: coarse)');
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

// Whole pixels, at least one, inside the picture.
function fitted(box, picture) {
  let [x, y, width, height] = box.map(Math.round);
  width = Math.max(1, Math.min(width, picture.width));
  height = Math.max(1, Math.min(height, picture.height));
  x = Math.max(0, Math.min(x, picture.width - width));
  y = Math.max(0, Math.min(y, picture.height - height));
  return [x, y, width, height];
}

function between([x, y], [across, down]) {
  const [left, right] = [x, across].sort((a, b) => a - b);
  const [top, bottom] = [y, down].sort((a, b) => a - b);
  return [left, top, right - left, bottom - top];
}

// Moved by an arrow key, or resized with Shift; with Ctrl five times as far.
function nudged([x, y, width, height], step, event, picture) {
  const far = Math.max(1, Math.round(picture.width / 200)) * (event.ctrlKey ? 5 : 1);
  const [dx, dy] = [step[0] * far, step[1] * far];
  return event.shiftKey ? [x, y, width + dx, height + dy] : [x + dx, y + dy, width, height];
}

// The pixel under a pointer; outside the picture, the nearest one on its border.
function pixel(svg, event, picture) {
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  return [Math.max(0, Math.min(picture.width, point.x)), Math.max(0, Math.min(picture.height, point.y))];
}

// Pixels up to which a press is a tap; a tap is never quite still.
const still = (event, scale) => Math.max(3, (event.pointerType === 'touch' ? 8 : 3) * scale);

const grips = () => ['nw', 'ne', 'sw', 'se'].map((corner) => draw('circle', { class: 'grip', 'data-corner': corner }));
const cornerOf = (corner, [x, y, width, height]) => [corner.includes('w') ? x : x + width, corner.includes('n') ? y : y + height];
const opposite = (corner, [x, y, width, height]) => [corner.includes('w') ? x + width : x, corner.includes('n') ? y + height : y];

// Puts a grip on its corner of a box; hides it without a box. `scale` is pixels of the picture per pixel of the screen.
function seat(grip, box, scale) {
  const { corner } = grip.dataset;
  const [x, y] = box ? cornerOf(corner, box) : [0, 0];
  grip.setAttribute('cx', x);
  grip.setAttribute('cy', y);
  grip.setAttribute('r', (touch.matches ? 13 : 7) * scale);
  grip.style.display = box ? '' : 'none';
  grip.style.cursor = `${corner}-resize`;
}
