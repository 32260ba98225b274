// The page: what is shown, what is chosen, what is asked for.

import * as api from "./api.js";
import * as draw from "./draw.js";

const $ = (id) => document.getElementById(id);
const NAMES = { simcc: "SimCC", dark: "Heatmap", pct: "PCT" };
const HINTS = {
  simcc: "Each joint is two distributions: across, at the lower edge, and down, at the left. The higher, the surer.",
  dark: "Each joint is a map of where it may be; here all of them, or the one that you point at.",
  pct: "The whole pose is these tokens. Point at one: around each joint, how far it moves when that token is replaced.",
};
const STAGES = ["decode", "queue", "detect", "crop", "pose", "postprocess"];
const ALL = "all";
/** Milliseconds between two frames of the camera that the service had no time for. */
const PATIENCE = 500;

const state = {
  cards: [], view: ALL, photos: [], photo: null, threshold: 0.3,
  box: null, inside: false, lit: null, token: null, snippet: "curl", camera: null,
};
const panels = new Map();
/** The photo that was last asked to be shown: others may still be read. */
let wanted = null;

/** An element with properties and children; texts become text, never markup. */
function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else if (value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
const say = (text) => { $("status").textContent = text; };
const readable = (name) => name.replaceAll("_", " ");
const visible = () => (state.view === ALL ? state.cards : state.cards.filter(({ name }) => name === state.view));
const body = (card) => state.photo?.answers.get(card.name)?.body;
const people = (card) => body(card)?.predictions ?? [];

function title(card) {
  const alike = state.cards.filter(({ representation }) => representation === card.representation);
  const name = NAMES[card.representation] ?? card.representation;
  return alike.length > 1 ? `${name} (${card.name})` : name;
}

/** Which of a model's people is the chosen one: the one whose box overlaps the chosen box most. */
function chosen(card) {
  if (!state.box) return null;
  const shares = people(card).map(({ bbox }) => overlap(bbox, state.box));
  const best = shares.indexOf(Math.max(...shares));
  return shares[best] > 0.5 ? best : null;
}

function overlap([x, y, w, h], [left, top, width, height]) {
  const across = Math.min(x + w, left + width) - Math.max(x, left);
  const down = Math.min(y + h, top + height) - Math.max(y, top);
  const shared = Math.max(across, 0) * Math.max(down, 0);
  return shared / (w * h + width * height - shared || 1);
}

// ---------------------------------------------------------------------------------- asking

async function add(files) {
  stopCamera();
  notice(null);
  const photos = [...files].map(photoOf);
  state.photos.push(...photos);
  if (photos.length) show(photos[0]);
}

function photoOf(file) {
  return {
    name: file.name || "pasted.png", blob: file, type: file.type || "application/octet-stream",
    url: URL.createObjectURL(file), bitmap: null, width: 4, height: 3, answers: new Map(), told: new Map(),
  };
}

/** Have a photo's pixels, if the browser can read them; they weigh tens of millions of bytes. */
async function develop(photo) {
  photo.bitmap ??= await createImageBitmap(photo.blob).catch(() => null);
  if (photo.bitmap) Object.assign(photo, { width: photo.bitmap.width, height: photo.bitmap.height });
}

async function show(photo) {
  wanted = photo;
  await develop(photo);
  if (wanted !== photo) return photo === state.photo ? null : fold(photo);
  if (state.photo !== photo) fold(state.photo);
  Object.assign(state, { photo, box: null, lit: null, token: null });
  render();
  return askAll(photo);
}

/** Let a photo's pixels go. */
function fold(photo) {
  photo?.bitmap?.close();
  if (photo) photo.bitmap = null;
}

/** One model after the other: together they would share a batch, and none could be timed. */
async function askAll(photo) {
  for (const card of visible()) {
    if (!photo.answers.has(card.name)) await estimate(photo, card);
  }
  await askInside();
}

async function estimate(photo, card) {
  const begin = performance.now();
  photo.answers.set(card.name, { waiting: true });
  if (photo === state.photo) render();
  try {
    const found = await api.pose(photo.blob, api.query(card, state.cards));
    photo.answers.set(card.name, { body: found, milliseconds: performance.now() - begin });
    const count = found.predictions.length;
    if (!state.camera) {
      say(`${title(card)}: ${count === 1 ? "1 person" : `${count || "no"} people`} in ${found.timings_ms.total.toFixed(0)} ms.`);
    }
  } catch (problem) {
    photo.answers.set(card.name, { problem });
  }
  if (photo === state.photo) render();
}

/** What each visible representation saw of the chosen person. */
async function askInside() {
  if (!state.inside || !state.photo) return;
  state.box ??= firstPerson();
  const { photo, box } = state;
  if (!box) return;
  for (const card of visible()) {
    const key = `${card.name} ${box}`;
    if (photo.told.has(key) || !body(card)) continue;
    photo.told.set(key, {});
    try {
      const { predictions: [person] } = await api.pose(photo.blob, api.query(card, state.cards, explaining(box)));
      const told = person.explanation;
      for (const name of ["x", "y", "maps"]) if (told[name]) told[name] = draw.unpack(told[name]);
      photo.told.set(key, { told, person });
    } catch (problem) {
      photo.told.set(key, { problem });
    }
    if (photo === state.photo) render();
  }
}
/** The query that asks what was seen in a box. */
function explaining([x, y, width, height]) {
  const corners = [x, y, x + width, y + height].map((value) => Number(value.toFixed(2)));
  return { boxes: JSON.stringify([corners]), explain: true };
}
const told = (card) => (state.inside && state.box ? state.photo.told.get(`${card.name} ${state.box}`) : null);

// --------------------------------------------------------------------------------- choosing

function choosePerson(bbox) {
  Object.assign(state, { box: bbox, lit: null, token: null });
  render();
  askInside();
}

function chooseInside(on) {
  Object.assign(state, { inside: on, lit: null, token: null });
  if (on) state.box ??= firstPerson();
  render();
  askInside();
}

const firstPerson = () => visible().map((card) => people(card)[0]).find(Boolean)?.bbox ?? null;

function light(lit, token = null) {
  if (JSON.stringify([lit, token]) === JSON.stringify([state.lit, state.token])) return;
  Object.assign(state, { lit, token });
  paint();
}

// ---------------------------------------------------------------------------------- camera

async function startCamera() {
  if (!navigator.mediaDevices?.getUserMedia) {
    return notice(new api.Problem({ title: "No camera here", detail: "Browsers lend a camera only to pages over https, or from this machine itself (localhost)." }));
  }
  try {
    const video = { facingMode: "environment", width: { ideal: 1280 } };
    state.camera = await navigator.mediaDevices.getUserMedia({ video });
  } catch (error) {
    return notice(new api.Problem({ title: "No camera", detail: error.message }));
  }
  const stream = state.camera;
  const video = Object.assign(document.createElement("video"), { muted: true, playsInline: true, srcObject: stream });
  await video.play();
  notice(null);
  chooseCamera();
  say("The camera is on.");
  while (state.camera === stream) {
    const photo = await frame(video);
    if (state.camera !== stream) break;
    // The picture and its joints appear together, so that they fit.
    for (const card of visible()) await estimate(photo, card);
    if (state.camera !== stream) break;
    const before = state.photos.findIndex(({ live }) => live);
    if (before >= 0) URL.revokeObjectURL(state.photos.splice(before, 1)[0].url);
    state.photos.push(photo);
    fold(state.photo);
    Object.assign(state, { photo, lit: null });
    render();
    const problems = [...photo.answers.values()].map(({ problem }) => problem).filter(Boolean);
    if (problems.some(({ status }) => status !== 503 && status !== 429)) stopCamera();
    if (problems.length) await new Promise((resume) => setTimeout(resume, PATIENCE));
  }
}

async function frame(video) {
  const canvas = Object.assign(document.createElement("canvas"), { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.85));
  const photo = photoOf(new File([blob], "camera.jpg", { type: "image/jpeg" }));
  await develop(photo);
  return Object.assign(photo, { live: true });
}

function stopCamera() {
  if (!state.camera) return;
  for (const track of state.camera.getTracks()) track.stop();
  state.camera = null;
  for (const photo of state.photos) photo.live = false;
  chooseCamera();
  say("The camera is off.");
}

function chooseCamera() {
  $("camera").textContent = state.camera ? "Stop" : "Camera";
  $("camera").setAttribute("aria-pressed", Boolean(state.camera));
}

// ---------------------------------------------------------------------------------- showing

function render() {
  const photo = state.cards.length ? state.photo : null;
  $("empty").hidden = Boolean(photo);
  $("panels").hidden = !photo;
  // Where nothing but problems came back there is nothing to say of the picture.
  $("side").hidden = !photo || visible().every(({ name }) => photo.answers.get(name)?.problem);
  renderFilm();
  if (!photo) return;
  renderPanels();
  renderPeople();
  renderTime();
  renderUse();
  renderModel();
  paint();
}

function renderPanels() {
  const cards = visible();
  for (const [name, panel] of panels) {
    if (!cards.some((card) => card.name === name)) {
      panel.figure.remove();
      panels.delete(name);
    }
  }
  $("panels").className = cards.length > 1 ? "panels several" : "panels";
  $("panels").tabIndex = cards.length > 1 ? 0 : -1;
  for (const card of cards) {
    if (!panels.has(card.name)) panels.set(card.name, new Panel(card));
    $("panels").append(panels.get(card.name).figure);
    panels.get(card.name).render();
  }
}

class Panel {
  constructor(card) {
    this.card = card;
    this.caption = h("figcaption");
    this.under = h("canvas", { "aria-hidden": "true" });
    this.over = h("canvas", { className: "over", role: "img" });
    this.waiting = h("div", { className: "waiting", hidden: true });
    this.frame = h("div", { className: "frame" }, this.under, this.over, this.waiting);
    this.tokens = h("div", { className: "tokens", role: "listbox", "aria-label": "Tokens", "aria-orientation": "horizontal", hidden: true });
    this.says = h("p", { className: "says", hidden: true });
    this.problem = h("div", { hidden: true });
    this.figure = h("figure", { className: "panel" }, this.caption, this.frame, this.tokens, this.says, this.problem);
    new ResizeObserver(() => this.paint(true)).observe(this.frame);
    this.over.addEventListener("pointermove", (event) => this.point(event));
    this.over.addEventListener("pointerdown", (event) => this.point(event));
    this.over.addEventListener("pointerleave", ({ pointerType }) => {
      // A finger has left as soon as it has pointed.
      if (pointerType === "touch") return;
      light(null);
      tip(null);
    });
    this.over.addEventListener("click", (event) => this.click(event));
    this.tokens.addEventListener("pointerleave", () => light(null));
    this.tokens.addEventListener("keydown", (event) => this.key(event));
  }

  get scene() {
    const { card } = this;
    const inside = told(card);
    const explained = inside?.told ?? null;
    return {
      card, threshold: state.threshold, token: state.token, told: explained,
      // The explained person alone, whose crop is the explanation's.
      people: explained ? [inside.person] : people(card),
      person: explained ? 0 : chosen(card),
      lit: explained && state.lit ? { ...state.lit, person: 0 } : litOf(card),
      view: explained ? draw.viewOf(explained) : draw.whole(state.photo),
      unit: this.over.width / (this.frame.clientWidth || 1),
    };
  }

  render() {
    const { card } = this;
    const answer = state.photo.answers.get(card.name) ?? {};
    const found = answer.body?.predictions;
    const facts = [];
    if (found) facts.push(`${found.length} ${found.length === 1 ? "person" : "people"}`, `${answer.body.timings_ms.total.toFixed(0)} ms`);
    this.caption.replaceChildren(h("b", {}, title(card)), h("span", {}, facts.join(" · ")));
    this.waiting.hidden = !answer.waiting || Boolean(state.camera);
    const problem = answer.problem ?? told(card)?.problem;
    this.problem.hidden = !problem;
    if (problem && this.shown !== problem) this.problem.replaceChildren(complaint(problem, () => this.again()));
    this.shown = problem;
    this.frame.hidden = Boolean(answer.problem) && !state.photo.bitmap;
    const { view, told: explained } = this.scene;
    this.figure.style.setProperty("--ratio", view.width / view.height);
    const names = (found ?? []).map(({ score }, index) => `person ${index + 1}, score ${score.toFixed(2)}`);
    this.over.setAttribute("aria-label", found ? `${state.photo.name} by ${title(card)}: ${names.join("; ") || "nobody found"}` : state.photo.name);
    this.renderTokens(explained);
    this.says.hidden = !state.inside;
    this.paint(true);
  }

  renderTokens(explained) {
    const tokens = explained?.tokens;
    this.tokens.hidden = !tokens;
    if (!tokens || this.listed === explained) return;
    this.listed = explained;
    this.tokens.replaceChildren(...tokens.map((entry, token) => {
      const sure = explained.probabilities[token];
      const item = h("div", { role: "option", tabIndex: token ? -1 : 0, "aria-label": `Token ${token + 1}, entry ${entry}, probability ${sure.toFixed(2)}` });
      item.style.setProperty("--sure", `${100 * sure}%`);
      for (const event of ["pointerenter", "focus", "click"]) item.addEventListener(event, () => light(null, token));
      return item;
    }));
  }

  key(event) {
    const items = [...this.tokens.children];
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -items.length, End: items.length }[event.key];
    if (!step) return;
    event.preventDefault();
    const now = items.indexOf(document.activeElement);
    const next = Math.min(Math.max(now + step, 0), items.length - 1);
    items[now].tabIndex = -1;
    items[next].tabIndex = 0;
    items[next].focus();
    say(this.says.textContent);
  }

  paint(resized = false) {
    if (!state.photo || this.frame.hidden) return;
    const scene = this.scene;
    if (resized) {
      const ratio = window.devicePixelRatio || 1;
      for (const canvas of [this.under, this.over]) {
        const [width, height] = [this.frame.clientWidth, this.frame.clientHeight].map((size) => Math.max(Math.round(size * ratio), 1));
        if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
      }
      scene.unit = ratio;
      draw.photograph(this.under, state.photo, scene.view);
    }
    draw.people(this.over, scene);
    this.tell(scene);
  }

  tell({ told: explained, people: [person], card }) {
    if (!explained) {
      const waits = state.box && body(card) && !told(card)?.problem;
      this.says.textContent = waits ? "" : "Choose a person.";
      return;
    }
    const lit = state.lit?.joint ?? null;
    let text = HINTS[card.representation];
    if (explained.moves) {
      const most = Math.max(...explained.moves.flat(), 1e-9);
      for (const [token, item] of [...this.tokens.children].entries()) {
        item.setAttribute("aria-selected", token === state.token);
        item.style.setProperty("--shown", lit === null ? 1 : 0.2 + 0.8 * explained.moves[token][lit] / most);
      }
      if (state.token !== null) text = this.moved(explained, state.token);
    }
    if (lit !== null) {
      const joint = draw.joints(person)[lit];
      const name = readable(card.joint_names[lit]);
      if (explained.x) text = `${name}: likeliest bins ${explained.x.peaks[lit].toFixed(3)} across, ${explained.y.peaks[lit].toFixed(3)} down; score ${joint.score.toFixed(2)}.`;
      else if (explained.maps) text = `${name}: peak ${explained.maps.peaks[lit].toFixed(2)}; score ${joint.score.toFixed(2)}.`;
      else text = `${name}: the brighter a token, the further it moves this joint.`;
    }
    this.says.textContent = text;
  }

  moved(explained, token) {
    const order = explained.moves[token].map((far, joint) => [far, joint]).sort(([a], [b]) => b - a).slice(0, 3);
    const names = order.map(([far, joint]) => `${readable(this.card.joint_names[joint])} ${far.toFixed(1)}`);
    return `Token ${token + 1}, entry ${explained.tokens[token]}, probability ${explained.probabilities[token].toFixed(2)}. Moves, in pixels of the crop: ${names.join(", ")}.`;
  }

  /** The joint under the pointer, if one is near. */
  near({ clientX, clientY, pointerType }) {
    const area = this.over.getBoundingClientRect();
    const scene = this.scene;
    const at = draw.placing({ width: area.width }, scene.view);
    let [nearest, best] = [null, pointerType === "touch" ? 26 : 15];
    for (const [person, entry] of scene.people.entries()) {
      for (const [joint, { x, y, score }] of draw.joints(entry).entries()) {
        const far = Math.hypot(at.x(x) - (clientX - area.left), at.y(y) - (clientY - area.top));
        if (far < best && score >= scene.threshold) [nearest, best] = [{ person, joint }, far];
      }
    }
    return nearest;
  }

  point(event) {
    const found = this.near(event);
    const scene = this.scene;
    if (!found) {
      tip(null);
      return light(null);
    }
    const person = scene.people[found.person];
    light({ joint: found.joint, box: person.bbox });
    const { x, y, score } = draw.joints(person)[found.joint];
    const whose = scene.told || scene.people.length < 2 ? "" : `, person ${found.person + 1}`;
    tip(event, `${readable(scene.card.joint_names[found.joint])}${whose}`, `score ${score.toFixed(2)}`, `x ${x.toFixed(1)}, y ${y.toFixed(1)}`);
  }

  click(event) {
    if (state.inside) return;
    const area = this.over.getBoundingClientRect();
    const at = draw.placing({ width: area.width }, this.scene.view);
    const [x, y] = [event.clientX - area.left, event.clientY - area.top];
    const near = this.near(event);
    const list = people(this.card);
    const within = list.filter(({ bbox: [left, top, width, height] }) =>
      x >= at.x(left) && x <= at.x(left + width) && y >= at.y(top) && y <= at.y(top + height));
    const [smallest] = within.sort((a, b) => a.bbox[2] * a.bbox[3] - b.bbox[2] * b.bbox[3]);
    const person = near ? list[near.person] : smallest;
    choosePerson(person && String(person.bbox) !== String(state.box) ? person.bbox : null);
  }

  again() {
    state.photo.answers.delete(this.card.name);
    state.photo.told.clear();
    askAll(state.photo);
  }
}

/** The lit joint of a model's own people. */
function litOf(card) {
  if (!state.lit) return null;
  const shares = people(card).map(({ bbox }) => overlap(bbox, state.lit.box));
  const best = shares.indexOf(Math.max(...shares));
  return shares[best] > 0.5 ? { person: best, joint: state.lit.joint } : null;
}

/** A problem in words, with what can be done about it. */
function complaint(problem, again) {
  const id = problem.id ? h("small", {}, `Request ${problem.id}`) : null;
  const words = h("div", { className: "problem", role: "alert" }, h("b", {}, problem.title), problem.message, id);
  if (problem.status === 401) {
    const key = h("input", { type: "password", autocomplete: "off", required: true });
    const form = h("form", {}, h("label", {}, "API key", key), h("button", { type: "submit" }, "Use"));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      api.remember(key.value);
      again();
    });
    words.append(form);
  } else if (![400, 413, 415, 422].includes(problem.status)) {
    words.append(h("button", { type: "button", onclick: again }, "Try again"));
  }
  return words;
}

function notice(problem, again = () => notice(null)) {
  $("notice").hidden = !problem;
  if (problem) $("notice").replaceChildren(...complaint(problem, again).childNodes);
}

function tip(event, name, ...lines) {
  $("tip").hidden = !event;
  if (!event) return;
  $("tip").replaceChildren(h("b", {}, name), lines.join(" · "));
  const { width, height } = $("tip").getBoundingClientRect();
  const left = Math.min(event.clientX + 14, innerWidth - width - 8);
  const top = event.clientY + 18 + height > innerHeight ? event.clientY - height - 12 : event.clientY + 18;
  $("tip").style.translate = `${left}px ${top}px`;
}

function renderFilm() {
  const { photos } = state;
  $("film").hidden = photos.length < 2 || Boolean(state.camera);
  if ($("film").hidden) return;
  $("film").replaceChildren(...photos.map((photo) => {
    const current = photo === state.photo;
    const button = h("button", { type: "button", title: photo.name, "aria-label": photo.name, onclick: () => show(photo) });
    if (current) button.setAttribute("aria-current", "true");
    button.append(h("img", { src: photo.url, alt: "" }));
    return h("li", {}, button);
  }));
}

function renderPeople() {
  const card = visible().find((one) => people(one).length);
  const list = card ? people(card) : [];
  const active = card ? chosen(card) : null;
  const chip = (text, detail, pressed, bbox) => {
    const name = detail ? `Person ${text}, score ${detail}` : text;
    const button = h("button", { type: "button", "aria-label": name, onclick: () => choosePerson(bbox) }, text, detail ? h("small", {}, detail) : null);
    button.setAttribute("aria-pressed", pressed);
    return button;
  };
  const waits = visible().some(({ name }) => state.photo.answers.get(name)?.waiting);
  const chips = list.map(({ bbox, score }, index) => chip(`${index + 1}`, score.toFixed(2), active === index, bbox));
  if (!state.inside && list.length) chips.unshift(chip("Everybody", "", active === null, null));
  if (!list.length) chips.push(h("p", { className: "hint" }, waits ? "Looking …" : "Nobody was found."));
  const focused = [...$("people").children].indexOf(document.activeElement);
  $("people").replaceChildren(...chips);
  if (focused >= 0) $("people").children[Math.min(focused, chips.length - 1)].focus();
  $("inside").checked = state.inside;
  $("inside").disabled = !list.length || Boolean(state.camera);
}

/** The person whose joints the table lists, as the first model that found anybody has them. */
function tablePerson() {
  const card = visible().find((one) => people(one).length);
  return card ? people(card)[chosen(card) ?? 0] : null;
}

function renderJoints() {
  const cards = visible().filter((card) => people(card).length);
  $("joints").parentElement.hidden = !cards.length;
  if (!cards.length) return;
  const names = cards[0].joint_names;
  const alike = cards.filter((card) => String(card.joint_names) === String(names));
  const rows = alike.map((card) => draw.joints(people(card)[chosen(card) ?? 0]));
  const one = rows.length === 1;
  const heads = one ? ["x", "y", "score"] : [...alike.map(title), "apart"];
  const head = h("tr", {}, h("th", { scope: "col" }, `Person ${(chosen(alike[0]) ?? 0) + 1}`), ...heads.map((text) => h("th", { scope: "col" }, text)));
  const lines = names.map((name, joint) => {
    const found = rows.map((row) => row[joint]);
    const score = (sure) => h("td", {}, dot(sure), sure.toFixed(2));
    const far = Math.max(...found.flatMap((a) => found.map((b) => Math.hypot(a.x - b.x, a.y - b.y))));
    const cells = one
      ? [h("td", {}, found[0].x.toFixed(1)), h("td", {}, found[0].y.toFixed(1)), score(found[0].score)]
      : [...found.map(({ score: sure }) => score(sure)), h("td", {}, `${far.toFixed(0)} px`)];
    const line = h("tr", {}, h("th", { scope: "row" }, readable(name)), ...cells);
    if (found.every(({ score: sure }) => sure < state.threshold)) line.classList.add("off");
    line.addEventListener("pointerenter", () => light({ joint, box: tablePerson().bbox }));
    line.addEventListener("pointerleave", () => light(null));
    return line;
  });
  $("joints").replaceChildren(h("table", {}, h("thead", {}, head), h("tbody", {}, ...lines)));
}

/** Up and down in the table point at one joint after the other. */
function step(event) {
  const lines = [...$("joints").querySelectorAll("tbody tr")];
  const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const person = tablePerson();
  if (!move || !person) return;
  event.preventDefault();
  const joint = Math.min(Math.max((state.lit?.joint ?? (move > 0 ? -1 : lines.length)) + move, 0), lines.length - 1);
  light({ joint, box: person.bbox });
  lines[joint].scrollIntoView({ block: "nearest" });
  say([...lines[joint].children].map(({ textContent }) => textContent).join(", "));
}

function dot(sure) {
  const element = h("span", { className: "dot" });
  element.style.background = draw.colour(sure);
  return element;
}

function renderTime() {
  const cards = visible().filter(body);
  const times = cards.map((card) => body(card).timings_ms);
  const longest = Math.max(...times.map(({ total }) => total), 1);
  const shades = STAGES.map((_, index) => [0.28, 0.2, 1, 0.45, 0.72, 0.35][index]);
  const bars = times.map((time) => h("div", { className: "stack", "aria-hidden": "true" }, ...STAGES.map((stage, index) => {
    const part = h("i");
    part.style.width = `${100 * time[stage] / longest}%`;
    part.style.setProperty("--shade", shades[index]);
    return part;
  })));
  const number = (value) => h("td", {}, value < 10 ? value.toFixed(1) : value.toFixed(0));
  const row = (name, values, mark) => h("tr", {}, h("th", { scope: "row" }, mark, name), ...values.map(number));
  const rows = STAGES.map((stage, index) => {
    const mark = h("span", { className: "swatch" });
    mark.style.setProperty("--shade", shades[index]);
    return row(stage, times.map((time) => time[stage]), mark);
  });
  rows.push(row("total", times.map(({ total }) => total), null));
  rows.push(row("as seen from here", cards.map(({ name }) => state.photo.answers.get(name).milliseconds), null));
  const head = h("tr", {}, h("th", { scope: "col" }, "ms"), ...cards.map((card) => h("th", { scope: "col" }, title(card))));
  $("time").replaceChildren(h("div", { className: "bars" }, ...bars), h("table", {}, h("thead", {}, head), h("tbody", {}, ...rows)));
}

function renderUse() {
  const { photo } = state;
  const [card] = visible();
  const words = api.query(card, state.cards, state.inside && state.box ? explaining(state.box) : {});
  const texts = { curl: () => api.curl(photo, words), python: () => api.python(photo, words), json: () => (body(card) ? api.json(body(card)) : "") };
  $("snippet").textContent = texts[state.snippet]();
  const saves = [h("button", { type: "button", onclick: savePicture }, "Save picture")];
  for (const one of visible()) {
    saves.push(h("button", { type: "button", onclick: () => saveCoco(one) }, visible().length > 1 ? `COCO, ${title(one)}` : "Save COCO file"));
  }
  for (const button of saves) button.disabled = !visible().every(body);
  $("saves").replaceChildren(...saves);
}

function renderModel() {
  const percent = (card) => {
    const [figures, whose] = "AP" in card.measured ? [card.measured, ""] : [card.published, " published"];
    return "AP" in figures ? `${figures.AP.toFixed(3)}${whose}` : "unknown";
  };
  const facts = {
    name: (card) => card.name,
    AP: percent,
    backbone: (card) => card.backbone,
    input: (card) => card.input_size.join(" × "),
    parameters: (card) => `${(card.parameters / 1e6).toFixed(1)} M`,
    "one person": (card) => (card.milliseconds === null ? "not measured" : `${card.milliseconds.toFixed(1)} ms`),
    scores: (card) => card.scores,
    licence: (card) => card.licence,
  };
  $("model").replaceChildren(h("table", {}, h("tbody", {}, ...Object.entries(facts).map(([name, tell]) =>
    h("tr", {}, h("th", { scope: "row" }, name), ...visible().map((card) => h("td", {}, tell(card))))))));
}

let painting = false;
/** Once in a frame, whatever has changed meanwhile. */
function paint() {
  if (painting) return;
  painting = true;
  requestAnimationFrame(() => {
    painting = false;
    if (!state.photo) return;
    for (const panel of panels.values()) panel.paint();
    const tabled = tablePerson();
    const same = tabled && state.lit && overlap(tabled.bbox, state.lit.box) > 0.5;
    for (const [joint, line] of [...$("joints").querySelectorAll("tbody tr")].entries()) {
      line.classList.toggle("lit", Boolean(same) && state.lit.joint === joint);
    }
  });
  renderJointsOnce();
}

let jointsOf = "";
/** The table anew only where its numbers are other ones: whoever points at a line keeps it. */
function renderJointsOnce() {
  const key = JSON.stringify([state.photo?.name, state.threshold, state.box, visible().map((card) => body(card)?.request_id)]);
  if (key === jointsOf) return;
  jointsOf = key;
  renderJoints();
}

// ----------------------------------------------------------------------------------- saving

function save(blob, name) {
  const url = URL.createObjectURL(blob);
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
const stem = () => state.photo.name.replace(/\.[^.]*$/, "");

/** The picture as it is shown, all visible representations side by side, in the photo's own size. */
async function savePicture() {
  const scenes = visible().map((card) => panels.get(card.name).scene);
  const sizes = scenes.map(({ view, told: explained }) => {
    const width = explained ? 900 : state.photo.width;
    return [Math.round(width), Math.round(width * view.height / view.width)];
  });
  const gap = scenes.length > 1 ? 16 : 0;
  const whole = h("canvas", { width: sizes.reduce((sum, [width]) => sum + width + gap, -gap), height: Math.max(...sizes.map(([, height]) => height)) });
  let left = 0;
  for (const [index, scene] of scenes.entries()) {
    const [width, height] = sizes[index];
    const part = h("canvas", { width, height });
    draw.photograph(part, state.photo, scene.view);
    draw.people(part, { ...scene, lit: scene.told ? scene.lit : null, unit: Math.max(width / 900, 1) }, true);
    whole.getContext("2d").drawImage(part, left, 0);
    left += width + gap;
  }
  const blob = await new Promise((resolve) => whole.toBlob(resolve, "image/png"));
  save(blob, `${stem()}.${state.view === ALL ? "compared" : state.view}.png`);
}

async function saveCoco(card) {
  const missing = state.photos.filter(({ answers }) => !answers.get(card.name)?.body);
  for (const [index, photo] of missing.entries()) {
    say(`Asking for photo ${index + 1} of ${missing.length}.`);
    await estimate(photo, card);
  }
  const text = JSON.stringify(api.coco(state.photos, card, state.threshold));
  save(new Blob([text], { type: "application/json" }), `${state.photos.length > 1 ? "photos" : stem()}.${card.name}.coco.json`);
}

async function copy() {
  try {
    await navigator.clipboard.writeText($("snippet").textContent);
    $("copy").textContent = "Copied";
  } catch {
    // Without https there is no clipboard: let the reader's own shortcut do it.
    getSelection().selectAllChildren($("snippet"));
    $("copy").textContent = "Selected";
  }
  say($("copy").textContent);
  setTimeout(() => { $("copy").textContent = "Copy"; }, 1500);
}

// ---------------------------------------------------------------------------------- starting

function renderViews() {
  const choices = [...state.cards.map((card) => [card.name, title(card)])];
  if (choices.length > 1) choices.push([ALL, "Compare"]);
  $("views").append(...choices.map(([value, text]) => {
    const input = h("input", { type: "radio", name: "view", value, checked: value === state.view });
    input.addEventListener("change", () => {
      Object.assign(state, { view: value, lit: null, token: null });
      render();
      if (state.photo && !state.camera) askAll(state.photo);
    });
    return h("label", {}, input, h("span", {}, text));
  }));
  $("views").hidden = choices.length < 2;
}

function setThreshold(value) {
  state.threshold = value;
  $("threshold-value").textContent = value.toFixed(2);
  paint();
}

function listen() {
  $("files").addEventListener("change", ({ target }) => {
    add(target.files);
    target.value = "";
  });
  $("empty").addEventListener("click", () => $("files").click());
  $("camera").addEventListener("click", () => (state.camera ? stopCamera() : startCamera()));
  $("threshold").addEventListener("input", ({ target }) => setThreshold(target.valueAsNumber));
  $("inside").addEventListener("change", ({ target }) => chooseInside(target.checked));
  $("snippets").addEventListener("change", ({ target }) => {
    state.snippet = target.value;
    renderUse();
  });
  $("copy").addEventListener("click", copy);
  $("joints").addEventListener("keydown", step);
  $("joints").addEventListener("blur", () => light(null));
  addEventListener("paste", ({ clipboardData }) => {
    const files = [...clipboardData.files].filter(({ type }) => type.startsWith("image/"));
    if (files.length) add(files);
  });
  const dragged = ({ dataTransfer }) => dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!dragged(event)) return;
    event.preventDefault();
    $("drop").hidden = false;
  });
  addEventListener("dragleave", ({ relatedTarget }) => { if (!relatedTarget) $("drop").hidden = true; });
  addEventListener("drop", (event) => {
    if (!dragged(event)) return;
    event.preventDefault();
    $("drop").hidden = true;
    add(event.dataTransfer.files);
  });
}

async function start() {
  try {
    const { models, default: preferred } = await api.models();
    state.cards = models.filter(({ loaded }) => loaded);
    state.view = preferred;
    notice(null);
  } catch (problem) {
    return notice(problem, start);
  }
  renderViews();
  if (state.photo) show(state.photo);
}

$("threshold").style.setProperty("--scale", draw.gradient);
$("threshold").valueAsNumber = state.threshold;
setThreshold(state.threshold);
listen();
start();
