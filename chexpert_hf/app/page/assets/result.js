// Connects the viewer with the scores: a row shows its map. `result.py` makes the HTML and the data. Only the buttons
// that trigger "report", "activations" and "override" send requests.

let viewer = null;
let data = null; // of the study that is shown
let images = []; // of each view, decoded
let view = -1;
let chosen = 0;

const one = (selector) => element.querySelector(selector);
const all = (selector) => [...element.querySelectorAll(selector)];
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

async function start() {
  data = JSON.parse(one(".result")?.dataset.result ?? "null");
  if (!data) return;
  const mine = data;
  viewer = new Viewer(bytes(data.colors), viewer); // Gradio has taken the last one's elements apart
  one(".viewer-place").replaceWith(viewer.root);
  for (const item of data.views) item.maps = bytes(item.maps);
  view = -1;
  all(".view img").forEach((image, place) => (image.src = data.views[place].image));
  const loaded = await Promise.all(data.views.map((item) => decoded(item.image)));
  if (data !== mine) return; // another study has replaced this one
  images = loaded;
  show(data.viewOf[data.chosen], data.chosen);
}

async function decoded(address) {
  const image = Object.assign(new Image(), { src: address });
  await image.decode();
  return image;
}

// The server sends a radiograph in all its pixels once the visitor has zoomed beyond those that came with the scores.
async function refine() {
  const { id, view: place, image } = props.detail ?? {};
  if (!image || id !== data?.id) return;
  const detailed = await decoded(image);
  if (id !== data?.id) return;
  images[place] = detailed;
  if (place === view) viewer.refine(detailed);
}

function show(place, index) {
  chosen = index;
  const item = data.views[place];
  if (place !== view) viewer.show(images[place], item.label, item.size);
  view = place;
  const length = item.grid[0] * item.grid[1];
  const levels = item.maps.subarray(chosen * length, (chosen + 1) * length);
  const name = data.observations[chosen];
  const [text, note, isFaint] = [item.texts[chosen], item.notes[chosen], !item.positives[chosen]];
  viewer.setMap({ levels, grid: item.grid, box: item.box, name, text, note, isFaint });
  const origin = data.views.length > 1 ? ` ${item.label}: ${item.probabilities[chosen].toFixed(3)}.` : "";
  one(".map-text").textContent = `${name}.${origin} ${text}`;
  for (const button of all(".score")) button.setAttribute("aria-pressed", String(Number(button.dataset.index) === chosen));
  for (const button of all(".view")) button.setAttribute("aria-pressed", String(Number(button.dataset.view) === view));
  viewer.heat.dataset.drawn = `${data.id}:${view}:${chosen}`;
}

function sort(byProbability) {
  for (const list of all(".scores")) {
    const place = (row) => Number(byProbability ? row.dataset.rank : row.dataset.place);
    list.append(...[...list.children].sort((a, b) => place(a) - place(b)));
  }
}

element.addEventListener("click", (event) => {
  const { index, view: place, action, skip } = event.target.closest("button")?.dataset ?? {};
  if (skip !== undefined) one(".score").focus();
  else if (action) trigger(action, { observation: chosen, view });
  else if (place !== undefined) show(Number(place), chosen);
  else if (index !== undefined) show(data.viewOf[index], Number(index));
});

element.addEventListener("change", (event) => {
  event.stopPropagation();
  if (event.target.closest(".segments")) sort(event.target.value === "BY_PROBABILITY");
});

document.addEventListener("keydown", (event) => {
  if (!data || !one(".result")) return;
  const row = event.target.closest?.(".scores li");
  const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
  if (row && step) {
    event.preventDefault();
    const next = row[step]?.querySelector("button");
    next?.focus();
    next?.click();
  } else viewer.key(event);
});

element.addEventListener("detail", () => trigger("detail", { id: data.id, view }));

watch("value", start);
watch("detail", refine);
start();
