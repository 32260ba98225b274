// Pictures on canvases. Coordinates are the service's: pixels of the image, whose centres lie at
// integers, so that a joint at (0, 0) is drawn in the middle of the first pixel.

const STOPS = [[0, [84, 39, 143]], [0.35, [196, 62, 122]], [0.65, [246, 140, 70]], [1, [255, 240, 165]]];
const OUTLINE = "rgb(20 20 20 / .85)";

/** A score's colour as red, green and blue: from dark and violet to light and yellow, so that it tells without hue too. */
export function shade(score) {
  const value = Math.min(Math.max(score, 0), 1);
  const next = Math.max(STOPS.findIndex(([at]) => at >= value), 1);
  const [[from, low], [to, high]] = [STOPS[next - 1], STOPS[next]];
  const share = (value - from) / (to - from);
  return low.map((channel, index) => Math.round(channel + share * (high[index] - channel)));
}
export const colour = (score, alpha = 1) => `rgb(${shade(score).join(" ")} / ${alpha})`;
export const gradient = `linear-gradient(90deg, ${STOPS.map(([at, rgb]) => `rgb(${rgb.join(" ")}) ${100 * at}%`).join(", ")})`;

export const whole = (photo) => ({ x: 0, y: 0, width: photo.width, height: photo.height });

/** The part of the image that a crop shows. */
export function viewOf({ crop_size: [width, height], crop_to_image: [[across, , left], [, down, top]] }) {
  return { x: left - across / 2 + 0.5, y: top - down / 2 + 0.5, width: across * width, height: down * height };
}

export function joints(person) {
  const list = [];
  for (let at = 0; at < person.keypoints.length; at += 3) {
    const [x, y, score] = person.keypoints.slice(at, at + 3);
    list.push({ x, y, score });
  }
  return list;
}

/** Where image pixels lie on the canvas. */
export function placing(canvas, view) {
  const zoom = canvas.width / view.width;
  return { zoom, x: (x) => (x + 0.5 - view.x) * zoom, y: (y) => (y + 0.5 - view.y) * zoom };
}

export function photograph(canvas, photo, view) {
  const context = canvas.getContext("2d");
  // What a network sees beyond the border is black.
  context.fillStyle = "#000";
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (!photo.bitmap) return;
  context.imageSmoothingQuality = "high";
  const at = placing(canvas, view);
  context.drawImage(photo.bitmap, at.x(-0.5), at.y(-0.5), photo.width * at.zoom, photo.height * at.zoom);
}

/**
 * Draw people over a photo.
 *
 * @param canvas its width shows the view's; cleared unless `keep`.
 * @param scene people, card, view, threshold; person: the one who stands out, or null; lit: {person, joint} or
 *   null; told: an explanation of `person`, with `token` or null; unit: canvas pixels of a CSS pixel.
 */
export function people(canvas, scene, keep = false) {
  const context = canvas.getContext("2d");
  if (!keep) context.clearRect(0, 0, canvas.width, canvas.height);
  context.lineCap = context.lineJoin = "round";
  const at = placing(canvas, scene.view);
  const list = scene.people.map((person, index) => ({ person, index }));
  const shown = scene.told ? list.filter(({ index }) => index === scene.person) : list;
  if (scene.told) explain(context, scene, at);
  for (const { person, index } of shown.reverse()) {
    const aside = scene.person !== null && scene.person !== index;
    context.globalAlpha = aside ? 0.22 : 1;
    if (scene.person === index && !scene.told) box(context, person.bbox, at, scene.unit);
    skeleton(context, person, scene, at, scene.lit?.person === index ? scene.lit.joint : null);
  }
  context.globalAlpha = 1;
}

function box(context, [x, y, width, height], at, unit) {
  for (const [style, line] of [[OUTLINE, 3], ["#fff", 1.25]]) {
    context.strokeStyle = style;
    context.lineWidth = line * unit;
    context.strokeRect(at.x(x), at.y(y), width * at.zoom, height * at.zoom);
  }
}

function skeleton(context, person, scene, at, lit) {
  const { card, threshold, unit } = scene;
  const list = joints(person);
  const size = Math.sqrt(person.bbox[2] * person.bbox[3]) * at.zoom;
  const thin = scene.told ? 0.6 : 1;
  const width = thin * Math.min(Math.max(0.016 * size, 1.6 * unit), Math.max(5 * unit, 0.004 * context.canvas.width));
  const limbs = card.skeleton
    .map(([from, to], index) => ({ from: list[from], to: list[to], style: card.skeleton_colours[index] }))
    .filter(({ from, to }) => from.score >= threshold && to.score >= threshold);
  for (const outline of [true, false]) {
    for (const { from, to, style } of limbs) {
      context.beginPath();
      context.moveTo(at.x(from.x), at.y(from.y));
      context.lineTo(at.x(to.x), at.y(to.y));
      context.strokeStyle = outline ? OUTLINE : style;
      context.lineWidth = outline ? width + 1.6 * unit : width;
      context.stroke();
    }
  }
  for (const [index, joint] of list.entries()) {
    if (joint.score < threshold && index !== lit) continue;
    disc(context, at.x(joint.x), at.y(joint.y), width * 0.75 + 1.6 * unit * thin, colour(joint.score), unit);
    if (index === lit) {
      context.beginPath();
      context.arc(at.x(joint.x), at.y(joint.y), width + 6 * unit, 0, 7);
      context.strokeStyle = "#fff";
      context.lineWidth = 2 * unit;
      context.stroke();
    }
  }
}

function disc(context, x, y, radius, style, unit) {
  context.beginPath();
  context.arc(x, y, radius, 0, 7);
  context.fillStyle = style;
  context.strokeStyle = OUTLINE;
  context.lineWidth = 1.2 * unit;
  context.stroke();
  context.fill();
}

// --------------------------------------------------------- what the representation sees

/** A packed array's numbers of one joint, in [0, 1] of the joint's own peak, and that peak. */
export function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.data), (letter) => letter.charCodeAt(0));
  return { ...packed, size: bytes.length / packed.shape[0], bytes };
}

function explain(context, scene, at) {
  const { width, height } = context.canvas;
  context.fillStyle = "rgb(10 10 10 / .45)";
  context.fillRect(0, 0, width, height);
  const { told } = scene;
  const lit = scene.lit && scene.lit.person === scene.person ? scene.lit.joint : null;
  if (told.maps) heat(context, told, at, lit);
  else if (told.x) distributions(context, scene, at, lit);
  else if (scene.token !== null) moves(context, scene, at);
}

/** The map from a place in the crop to the canvas, along one axis: 0 for x, 1 for y. */
function along(told, at, axis) {
  const [row, project] = [told.crop_to_image[axis], axis ? at.y : at.x];
  const { step, origin } = told.grid;
  return (place) => project(row[axis] * (origin[axis] + step[axis] * place) + row[2]);
}

function heat(context, told, at, lit) {
  const { shape: [count, rows, columns], peaks, size, bytes } = told.maps;
  const top = Math.max(...peaks, 1e-9);
  const picture = new ImageData(columns, rows);
  for (let pixel = 0; pixel < size; pixel++) {
    let value = 0;
    for (let joint = 0; joint < count; joint++) {
      if (lit !== null && joint !== lit) continue;
      value = Math.max(value, bytes[joint * size + pixel] / 255 * (lit === null ? peaks[joint] / top : 1));
    }
    picture.data.set([...shade(value), Math.round(235 * Math.sqrt(value))], 4 * pixel);
  }
  const small = new OffscreenCanvas(columns, rows);
  small.getContext("2d").putImageData(picture, 0, 0);
  const [x, y] = [along(told, at, 0), along(told, at, 1)];
  context.imageSmoothingQuality = "high";
  context.drawImage(small, x(-0.5), y(-0.5), x(columns - 0.5) - x(-0.5), y(rows - 0.5) - y(-0.5));
}

function distributions(context, scene, at, lit) {
  const { told, unit, card } = scene;
  const { width, height } = context.canvas;
  const band = 0.2 * Math.min(width, height);
  const person = joints(scene.people[scene.person]);
  for (const [axis, packed] of [[0, told.x], [1, told.y]]) {
    const across = along(told, at, axis);
    const top = Math.max(...packed.peaks, 1e-9);
    const point = (place, tall) => (axis ? [tall, across(place)] : [across(place), height - tall]);
    const order = [...packed.peaks.keys()].sort((a, b) => (a === lit) - (b === lit));
    for (const joint of order) {
      if (lit === null && person[joint].score < scene.threshold) continue;
      const share = packed.peaks[joint] / top * band / 255;
      const values = packed.bytes.subarray(joint * packed.size, (joint + 1) * packed.size);
      const [first, last] = [values.findIndex((value) => value > 1), values.findLastIndex((value) => value > 1)];
      if (first < 0) continue;
      context.beginPath();
      context.moveTo(...point(first, 0));
      for (let place = first; place <= last; place++) context.lineTo(...point(place, values[place] * share));
      context.lineTo(...point(last, 0));
      const faint = lit !== null && joint !== lit;
      context.globalAlpha = faint ? 0.15 : joint === lit ? 0.9 : 0.4;
      context.fillStyle = card.joint_colours[joint];
      context.fill();
      context.globalAlpha = faint ? 0.25 : 1;
      context.strokeStyle = card.joint_colours[joint];
      context.lineWidth = (joint === lit ? 1.8 : 1) * unit;
      context.stroke();
    }
  }
  context.globalAlpha = 1;
  if (lit === null) return;
  const [x, y] = [at.x(person[lit].x), at.y(person[lit].y)];
  context.setLineDash([4 * unit, 4 * unit]);
  context.strokeStyle = "#fff";
  context.lineWidth = unit;
  context.beginPath();
  context.moveTo(x, height);
  context.lineTo(x, y);
  context.lineTo(0, y);
  context.stroke();
  context.setLineDash([]);
}

/** Around each joint a disc as wide as the joint moves when the token is replaced. */
function moves(context, scene, at) {
  const { told, unit, token, card } = scene;
  const scale = told.crop_to_image[0][0] * at.zoom;
  for (const [joint, { x, y }] of joints(scene.people[scene.person]).entries()) {
    const radius = told.moves[token][joint] * scale;
    if (radius < unit) continue;
    context.beginPath();
    context.arc(at.x(x), at.y(y), radius, 0, 7);
    context.globalAlpha = 0.45;
    context.fillStyle = card.joint_colours[joint];
    context.fill();
    context.globalAlpha = 1;
    context.strokeStyle = card.joint_colours[joint];
    context.lineWidth = 1.5 * unit;
    context.stroke();
  }
}
