// The service as this page sees it: GET /models, POST /pose, and its errors.

const KEY = "posemux-key";

/** What the service, or the way to it, says went wrong (RFC 9457). */
export class Problem extends Error {
  constructor({ title, detail, status = 0, request_id: id = "" }) {
    super(detail);
    Object.assign(this, { title, detail, status, id });
  }
}

/** Remember an API key until the tab is closed. */
export const remember = (key) => sessionStorage.setItem(KEY, key);
export const hasKey = () => Boolean(sessionStorage.getItem(KEY));

async function ask(path, options = {}) {
  const headers = { Accept: "application/json", ...options.headers };
  if (hasKey()) headers.Authorization = `Bearer ${sessionStorage.getItem(KEY)}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Problem({ title: "No answer", detail: "The service cannot be reached. Is it still running?" });
  }
  const body = await answer.json().catch(() => null);
  if (answer.ok && body) return body;
  throw new Problem(body?.detail ? body : { title: "No usable answer", detail: `The service answered ${answer.status}.`, status: answer.status });
}

export const models = () => ask("models");

/** The query that asks for a model, in the words that a reader knows best. */
export function query(card, cards, extra = {}) {
  const first = cards.find((other) => other.representation === card.representation);
  const chosen = first === card ? { representation: card.representation } : { model: card.name };
  return new URLSearchParams({ ...chosen, ...extra }).toString();
}

export function pose(blob, query) {
  const type = blob.type.startsWith("image/") ? blob.type : "application/octet-stream";
  return ask(`pose?${query}`, { method: "POST", body: blob, headers: { "Content-Type": type } });
}

// ---------------------------------------------------------------------------------- to copy

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function curl(photo, query) {
  const url = new URL(`pose?${query}`, document.baseURI).href;
  const key = hasKey() ? ` \\\n  -H "Authorization: Bearer $KEY"` : "";
  return `curl --data-binary ${shell(`@${photo.name}`)} \\\n  -H ${shell(`Content-Type: ${photo.type}`)}${key} \\\n  ${shell(url)}`;
}

export function python(photo, query) {
  const url = new URL(`pose?${query}`, document.baseURI).href;
  const key = hasKey() ? `, "Authorization": f"Bearer {KEY}"` : "";
  return `import json
from pathlib import Path
from urllib.request import Request, urlopen

photo = Path(${JSON.stringify(photo.name)})
request = Request(
    ${JSON.stringify(url)},
    data=photo.read_bytes(),
    headers={"Content-Type": ${JSON.stringify(photo.type)}${key}},
)
body = json.load(urlopen(request))
for person in body["predictions"]:
    print(person["score"], person["bbox"], person["keypoints"])`;
}

/** JSON with lists of numbers on one line each. */
export const json = (body) =>
  JSON.stringify(body, null, 1).replace(/\[[\s\d.,e+-]*\]/g, (list) => list.replace(/\s+/g, " "));

/** A COCO data set: joints below the threshold count as not labelled, their scores are kept. */
export function coco(photos, card, threshold) {
  const images = [], annotations = [];
  for (const [index, photo] of photos.entries()) {
    const body = photo.answers.get(card.name)?.body;
    if (!body) continue;
    const { width, height } = body.images[0];
    images.push({ id: index + 1, file_name: photo.name, width, height });
    for (const { bbox, score, keypoints } of body.predictions) {
      const labelled = [], scores = [];
      for (let at = 0; at < keypoints.length; at += 3) {
        const [x, y, sure] = keypoints.slice(at, at + 3);
        labelled.push(...(sure >= threshold ? [x, y, 2] : [0, 0, 0]));
        scores.push(sure);
      }
      annotations.push({
        id: annotations.length + 1, image_id: index + 1, category_id: 1, iscrowd: 0,
        bbox, area: bbox[2] * bbox[3], score, keypoints: labelled, keypoint_scores: scores,
        num_keypoints: scores.filter((sure) => sure >= threshold).length,
      });
    }
  }
  const skeleton = card.skeleton.map((limb) => limb.map((joint) => joint + 1));
  const person = { id: 1, name: "person", supercategory: "person", keypoints: card.joint_names, skeleton };
  return { info: { description: `posemux, ${card.name}` }, images, annotations, categories: [person] };
}
