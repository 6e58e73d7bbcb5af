// The viewer: draws maps over radiographs. `result.py` makes the HTML and the data. Only the buttons that trigger
// "report", "activations" and "override" send requests.

const THUMBNAIL = 132; // pixels across, for about 110 on the page
const HEAT = 640; // pixels of the longer side of the enlarged map
const MAX_ZOOM = 8;

let data = null; // of the study that is shown
let images = []; // of each view, decoded
let view = 0;
let chosen = 0;
const zoom = { scale: 1, x: 0, y: 0 }; // x and y in shares of the stage

const one = (selector) => element.querySelector(selector);
const all = (selector) => [...element.querySelectorAll(selector)];
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

function start() {
  const root = one(".result");
  data = root ? JSON.parse(root.dataset.result) : null;
  if (!data) return;
  data.colors = bytes(data.colors);
  for (const item of data.views) item.maps = bytes(item.maps);
  const id = data.id;
  images = [];
  chosen = data.chosen;
  one(".opacity").value = 50;
  one(".own-scale").checked = false;
  one('.segments input[value="BY_PROBABILITY"]').checked = true;
  fit();
  show(data.viewOf[chosen]);
  data.views.forEach((item, place) => {
    const image = new Image();
    image.onload = () => {
      if (!data || data.id !== id) return; // another study has replaced this one
      images[place] = image;
      drawViewButton(place);
      if (place === view) drawGallery();
    };
    image.src = item.image;
  });
}

// Drawing

function paint(canvas, item, index, longest, ownScale) {
  // The map enlarged bilinearly, pixel centres on pixel centres, as torch does; alpha is the map itself.
  const [rows, columns] = item.grid;
  const levels = item.maps.subarray(index * rows * columns, (index + 1) * rows * columns);
  const [left, top, right, bottom] = item.box;
  const scale = longest / Math.max(right - left, bottom - top);
  const width = Math.max(1, Math.round((right - left) * scale));
  const height = Math.max(1, Math.round((bottom - top) * scale));
  canvas.width = width;
  canvas.height = height;
  const peak = ownScale ? Math.max(1, ...levels) / 255 : 1;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  const across = steps(width, columns);
  for (let y = 0; y < height; y++) {
    const [above, below, down] = step(y, height, rows);
    for (let x = 0; x < width; x++) {
      const [before, after, along] = across[x];
      const high = levels[above * columns + before] * (1 - along) + levels[above * columns + after] * along;
      const low = levels[below * columns + before] * (1 - along) + levels[below * columns + after] * along;
      const level = Math.round((high * (1 - down) + low * down) / peak);
      const at = 4 * (y * width + x);
      pixels.data[at] = data.colors[3 * level];
      pixels.data[at + 1] = data.colors[3 * level + 1];
      pixels.data[at + 2] = data.colors[3 * level + 2];
      pixels.data[at + 3] = level;
    }
  }
  context.putImageData(pixels, 0, 0);
}

function step(place, length, count) {
  const at = Math.min(Math.max(((place + 0.5) * count) / length - 0.5, 0), count - 1);
  const before = Math.floor(at);
  return [before, Math.min(before + 1, count - 1), at - before];
}

const steps = (length, count) => Array.from({ length }, (_, place) => step(place, length, count));

function drawMap() {
  const item = data.views[view];
  const canvas = one(".heat");
  paint(canvas, item, chosen, HEAT, one(".own-scale").checked);
  const [width, height] = item.size;
  const [left, top, right, bottom] = item.box;
  canvas.style.left = `${(100 * left) / width}%`;
  canvas.style.top = `${(100 * top) / height}%`;
  canvas.style.width = `${(100 * (right - left)) / width}%`;
  canvas.style.height = `${(100 * (bottom - top)) / height}%`;
  const name = data.observations[chosen];
  canvas.setAttribute("aria-label", `Map of ${name}. ${item.texts[chosen]}`);
  one(".mapped figcaption").textContent = `Map of ${name}`;
  describe(item, name);
  canvas.dataset.drawn = `${data.id}:${view}:${chosen}`;
}

function describe(item, name) {
  const line = one(".map-text");
  const strong = document.createElement("strong");
  strong.textContent = name;
  const origin = data.views.length > 1 || item.label !== "Radiograph" ? ` ${item.label}: ${item.probabilities[chosen].toFixed(3)}.` : "";
  line.replaceChildren(strong, `. ${data.definitions[chosen]}${origin} ${item.texts[chosen]}`);
}

function drawOpacity() {
  const share = Number(one(".opacity").value);
  one(".heat").style.opacity = share / 100;
  one(".opacity-value").textContent = `${share} %`;
}

function drawGallery() {
  const item = data.views[view];
  const image = images[view];
  if (!image) return;
  const [width, height] = item.size;
  const scale = THUMBNAIL / width;
  const heat = document.createElement("canvas");
  for (const button of all(".thumbnail")) {
    const index = Number(button.dataset.index);
    const canvas = button.querySelector("canvas");
    canvas.width = THUMBNAIL;
    canvas.height = Math.round(height * scale);
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    paint(heat, item, index, THUMBNAIL, one(".own-scale").checked);
    const [left, top, right, bottom] = item.box;
    context.globalAlpha = 0.75;
    context.drawImage(heat, left * scale, top * scale, (right - left) * scale, (bottom - top) * scale);
    button.querySelector(".thumbnail-note").textContent = `${item.probabilities[index].toFixed(2)}${item.empty[index] ? ", empty map" : ""}`;
  }
}

function drawViewButton(place) {
  const canvas = one(`.view[data-view="${place}"] canvas`);
  if (!canvas) return;
  const [width, height] = data.views[place].size;
  canvas.height = 112;
  canvas.width = Math.round((112 * width) / height);
  canvas.getContext("2d").drawImage(images[place], 0, 0, canvas.width, canvas.height);
}

// Choosing

function show(place) {
  view = place;
  const item = data.views[view];
  for (const image of all(".layers img")) image.src = item.image;
  for (const layers of all(".layers")) layers.style.aspectRatio = `${item.size[0]} / ${item.size[1]}`;
  for (const stage of all(".stage")) stage.style.aspectRatio = `${item.size[0]} / ${item.size[1]}`;
  one(".original img").alt = `${item.label} as it was read`;
  one(".mapped img").alt = "";
  all(".view").forEach((button, index) => button.setAttribute("aria-pressed", String(index === view)));
  mark();
  drawGallery();
}

function choose(index) {
  chosen = index;
  if (data.viewOf[chosen] !== view) show(data.viewOf[chosen]);
  else mark();
}

function mark() {
  for (const button of all(".score, .thumbnail")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.index) === chosen));
  }
  one(".observation").value = String(chosen);
  drawMap();
  drawOpacity();
}

function sort() {
  const byProbability = one('.segments input[value="BY_PROBABILITY"]').checked;
  const place = (row) => Number(row.dataset.place);
  const value = (row) => Number.parseFloat(row.querySelector(".score-fill").style.width);
  const rows = all(".scores li").sort((a, b) => (byProbability && value(b) - value(a)) || place(a) - place(b));
  one(".scores").append(...rows);
}

// Zooming: both panes show the same part

function fit() {
  Object.assign(zoom, { scale: 1, x: 0, y: 0 });
  applyZoom();
}

function applyZoom() {
  const least = 1 - zoom.scale;
  zoom.x = Math.min(0, Math.max(least, zoom.x));
  zoom.y = Math.min(0, Math.max(least, zoom.y));
  for (const layers of all(".layers")) {
    layers.style.transform = `translate(${100 * zoom.x}%, ${100 * zoom.y}%) scale(${zoom.scale})`;
  }
  for (const stage of all(".stage")) stage.classList.toggle("is-zoomed", zoom.scale > 1);
}

function zoomBy(factor, x = 0.5, y = 0.5) {
  const scale = Math.min(MAX_ZOOM, Math.max(1, zoom.scale * factor));
  zoom.x = x - ((x - zoom.x) * scale) / zoom.scale;
  zoom.y = y - ((y - zoom.y) * scale) / zoom.scale;
  zoom.scale = scale;
  applyZoom();
}

function move(x, y) {
  zoom.x += x;
  zoom.y += y;
  applyZoom();
}

const pointers = new Map();

function share(event, stage) {
  const box = stage.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

// Events, delegated: the HTML below `element` is replaced with each radiograph

element.addEventListener("click", (event) => {
  const target = event.target.closest("button");
  if (!target || !element.contains(target)) return;
  const { index, view: place, action, zoom: kind } = target.dataset;
  if (action) trigger(action, { observation: chosen, view });
  else if (place !== undefined) show(Number(place));
  else if (index !== undefined) choose(Number(index));
  else if (kind === "in") zoomBy(1.5);
  else if (kind === "out") zoomBy(1 / 1.5);
  else if (kind === "reset") fit();
  else if (kind === "full") document.fullscreenElement ? document.exitFullscreen() : one(".viewer").requestFullscreen();
});

element.addEventListener("input", (event) => {
  if (event.target.matches(".opacity")) drawOpacity();
});

element.addEventListener("change", (event) => {
  event.stopPropagation();
  if (event.target.matches(".observation")) choose(Number(event.target.value));
  if (event.target.matches(".own-scale")) {
    drawMap();
    drawGallery();
  }
  if (event.target.closest(".segments")) sort();
});

element.addEventListener("keydown", (event) => {
  if (!event.target.matches(".stage") || event.ctrlKey || event.metaKey || event.altKey) return;
  const moves = { ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] };
  if (event.key === "+" || event.key === "=") zoomBy(1.5);
  else if (event.key === "-") zoomBy(1 / 1.5);
  else if (event.key === "0") fit();
  else if (event.key in moves && zoom.scale > 1) move(...moves[event.key]);
  else return;
  event.preventDefault();
});

element.addEventListener("dblclick", (event) => {
  const stage = event.target.closest(".stage");
  if (!stage) return;
  if (zoom.scale > 1) fit();
  else zoomBy(2.5, ...share(event, stage));
});

element.addEventListener(
  "wheel",
  (event) => {
    // Only with Ctrl, which is also what a pinch on a touchpad sends: the page must go on scrolling over the image.
    const stage = event.target.closest(".stage");
    if (!stage || !event.ctrlKey) return;
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY / 200), ...share(event, stage));
  },
  { passive: false },
);

element.addEventListener("pointerdown", (event) => {
  const stage = event.target.closest(".stage");
  if (!stage || (zoom.scale === 1 && event.pointerType === "mouse")) return;
  pointers.set(event.pointerId, share(event, stage));
  if (zoom.scale > 1) stage.setPointerCapture(event.pointerId);
});

element.addEventListener("pointermove", (event) => {
  const stage = event.target.closest(".stage");
  const before = pointers.get(event.pointerId);
  if (!stage || !before) return;
  const now = share(event, stage);
  const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
  if (other) {
    const distance = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]);
    zoomBy(distance(now) / Math.max(distance(before), 0.01), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
  } else if (zoom.scale > 1) {
    move(now[0] - before[0], now[1] - before[1]);
  }
  pointers.set(event.pointerId, now);
});

for (const kind of ["pointerup", "pointercancel"]) {
  element.addEventListener(kind, (event) => pointers.delete(event.pointerId));
}

watch("value", start);
start();
