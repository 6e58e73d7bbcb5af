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
  const root = one(".result");
  data = root ? JSON.parse(root.dataset.result) : null;
  if (!data) return;
  const mine = data;
  viewer = new Viewer(bytes(data.colors), viewer); // Gradio has taken the last one's elements apart
  one(".viewer-place").replaceWith(viewer.root);
  for (const item of data.views) item.maps = bytes(item.maps);
  view = -1;
  const decoded = data.views.map(async (item) => {
    const image = new Image();
    image.src = item.image;
    await image.decode();
    return image;
  });
  const loaded = await Promise.all(decoded);
  if (data !== mine) return; // another study has replaced this one
  images = loaded;
  images.forEach(drawViewButton);
  choose(data.chosen);
}

function drawViewButton(image, place) {
  const canvas = one(`.view[data-view="${place}"] canvas`);
  if (!canvas) return;
  Object.assign(canvas, { height: 112, width: Math.round((112 * image.naturalWidth) / image.naturalHeight) });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
}

function choose(index) {
  chosen = index;
  show(data.viewOf[chosen]);
}

function show(place) {
  const item = data.views[place];
  if (place !== view) viewer.show(images[place], item.label);
  view = place;
  const length = item.grid[0] * item.grid[1];
  const levels = item.maps.subarray(chosen * length, (chosen + 1) * length);
  const name = data.observations[chosen];
  viewer.setMap({ levels, grid: item.grid, box: item.box, name, text: item.texts[chosen] });
  const origin = data.views.length > 1 ? ` ${item.label}: ${item.probabilities[chosen].toFixed(3)}.` : "";
  one(".map-text").textContent = `${name}.${origin} ${item.texts[chosen]}`;
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
  const { index, view: place, action } = event.target.closest("button")?.dataset ?? {};
  if (action) trigger(action, { observation: chosen, view });
  else if (place !== undefined) show(Number(place));
  else if (index !== undefined) choose(Number(index));
});

element.addEventListener("change", (event) => {
  event.stopPropagation();
  if (event.target.closest(".segments")) sort(event.target.value === "BY_PROBABILITY");
});

document.addEventListener("keydown", (event) => {
  // From the page itself, too: after a click on no control, that is where the keys go.
  if (!data || !one(".result") || !(element.contains(event.target) || event.target === document.body)) return;
  const row = event.target.closest?.(".scores li");
  const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
  if (row && step) {
    event.preventDefault();
    const next = row[step]?.querySelector("button");
    next?.focus();
    next?.click();
  } else viewer.key(event);
});

watch("value", start);
start();
