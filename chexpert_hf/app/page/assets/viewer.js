// A radiograph viewer: a gray image, and a map over it. It knows nothing of the page around it, of models or of servers.
//
//   const viewer = new Viewer(colors);                       // a table of 256 colours as 768 bytes
//   place.append(viewer.root);
//   viewer.show(image, "Radiograph", [3000, 2400]);          // a decoded <img>, and the size of the whole radiograph
//   viewer.root.addEventListener("detail", ...);             // it is zoomed beyond the pixels of that image ...
//   viewer.refine(larger);                                   // ... for which this is one with more
//   viewer.setMap({ levels, grid, box, name, text });        // bytes, [rows, columns], [left, top, right, bottom]; with a
//                                                            // note on the film, and fainter if it isFaint
//   document.addEventListener("keydown", (event) => viewer.key(event));

const HEAT = 448; // pixels of the longer side of the enlarged map
const CONTOUR = 120; // cells along the longer side in which contours are traced
const MAX_ZOOM = 12; // times the fitted size
const FAINTEST = 0.45; // of the opacity of a map with the strongest evidence
const FULL_WINDOW = { center: 127.5, width: 255 };

// Command, key, label on the button, meaning.
const COMMANDS = [
  ["map", "m", "Map", "Show or hide the map"],
  ["contour", "c", "Contour", "Outline the map at a threshold"],
  ["split", "s", "Side by side", "Radiograph and map side by side"],
  ["window", "w", "Window", "Drag changes the gray window: across its width, up and down its level"],
  ["pan", "p", "Pan", "Drag moves the image"],
  ["invert", "i", "Invert", "Swap black and white"],
  ["out", "-", "−", "Zoom out"],
  ["in", "+", "+", "Zoom in"],
  ["fit", "f", "Fit", "Fit the image"],
  ["actual", "1", "1:1", "1:1, one pixel of the image on one of the screen"],
  ["reset", "r", "Reset", "Undo window, zoom and inversion"],
  ["full", "x", `<svg viewBox="0 0 16 16" aria-hidden="true"><path d="M2 6V2h4M10 2h4v4M14 10v4h-4M6 14H2v-4"/></svg>`, "Full screen"],
  ["help", "?", "?", "Keys and mouse"],
];
const MOUSE = [
  ["Wheel, pinch", "Zoom at the pointer"],
  ["Double click", "Zoom in, or fit"],
  ["Middle button, Shift + drag", "Move the image"],
  ["Arrow keys", "Move the image while it is zoomed"],
  ["[ and ]", "Fainter or stronger map"],
];
const FIELDS = "input:not([type=range], [type=checkbox], [type=radio]), select, textarea, dialog";

// A button whose label is a word is called by that word; the title then describes it.
const button = ([command, key, label, title]) =>
  `<button type="button" data-command="${command}" title="${title} (${key.toUpperCase()})"
    ${/^[A-Z][a-z]/.test(label) ? "" : `aria-label="${title}"`} aria-keyshortcuts="${key}">${label}</button>`;
const buttons = (...names) => COMMANDS.filter(([name]) => names.includes(name)).map(button).join("");
const keys = (rows) => rows.map(([key, meaning]) => `<dt><kbd>${key}</kbd></dt><dd>${meaning}</dd>`).join("");
const slider = (name, label, value) =>
  `<span class="slider" data-slider="${name}"><input type="range" min="0" max="100" step="5" value="${value}" aria-label="${label}"
    title="${label}"><output></output></span>`;
const pane = (map) =>
  `<div class="stage" tabindex="0" role="group"><div class="layers"><img class="film" alt="" decoding="sync" draggable="false">${map}</div>
    <span class="stage-name"></span></div>`;
const MAP = `<div class="overlay"><canvas class="heat" role="img"></canvas>
  <svg class="outline" aria-hidden="true"><path class="halo"/><path/></svg></div>`;
const MARKUP = `
  <svg class="for-readers" aria-hidden="true"><filter x="0" y="0" width="1" height="1" color-interpolation-filters="sRGB">
    <feComponentTransfer>${["R", "G", "B"].map((name) => `<feFunc${name} type="linear"/>`).join("")}</feComponentTransfer>
  </filter></svg>
  <div class="viewer-bar" role="toolbar" aria-label="Viewer">
    <span class="tools">${buttons("map")}${slider("opacity", "Opacity of the map", 35)}</span>
    <span class="tools">${buttons("contour")}${slider("threshold", "Threshold of the contour", 50)}</span>
    <span class="tools">${buttons("split")}</span>
    <label class="own-scale" title="Each map on its own scale; otherwise 1 is the strongest evidence for any observation">
      <input type="checkbox" checked>Own scale</label>
    <span class="tools">${buttons("window", "pan", "invert")}</span>
    <span class="tools">${buttons("out", "in", "fit", "actual", "reset", "full", "help")}</span>
  </div>
  <div class="panes">${pane(MAP)}${pane("")}
    <div class="color-bar" aria-hidden="true"><span>evidence</span><i><canvas></canvas></i><b style="top: 0"></b><b style="top: 50%"></b><b style="top: 100%"></b></div>
    <output class="stage-state" aria-hidden="true"></output>
  </div>
  <dialog class="sheet viewer-help" aria-label="Keys and mouse">
    <form method="dialog"><button class="close" aria-label="Close">✕</button></form><h2>Keys and mouse</h2>
    <dl>${keys(COMMANDS.map(([, key, , title]) => [key.toUpperCase(), title]))}${keys(MOUSE)}</dl></dialog>`;

let count = 0; // of viewers, each of which has a filter of its own

export class Viewer {
  one = (selector) => this.root.querySelector(selector);
  all = (selector) => [...this.root.querySelectorAll(selector)];

  /** With a `previous` viewer, its settings are taken over. */
  constructor(colors, previous) {
    this.colors = colors;
    this.root = Object.assign(document.createElement("div"), { className: "viewer", innerHTML: MARKUP });
    this.stages = this.all(".stage");
    this.one("filter").id = `gray-window-${++count}`;
    this.heat = this.one(".heat");
    this.outline = this.one(".outline");
    this.overlay = this.one(".overlay");
    this.pointers = new Map();
    this.map = null;
    this.size = [1, 1];
    this.on = { map: true, contour: false, split: false, ...previous?.on, invert: false };
    this.tool = previous?.tool ?? (matchMedia("(pointer: coarse)").matches ? "pan" : "window");
    const scale = Uint8Array.from({ length: 256 }, (_, place) => 255 - place);
    paint(this.one(".color-bar canvas"), { levels: scale, grid: [256, 1], box: [0, 0, 1, 256] }, colors, 1);
    this.inputs = this.all("input");
    previous?.inputs.forEach(({ value, checked }, place) => Object.assign(this.inputs[place], { value, checked }));
    this.window = { ...FULL_WINDOW };
    this.zoom = { scale: 1, x: 0, y: 0, isFitted: true };
    this.root.addEventListener("click", (event) => {
      const command = event.target.closest("[data-command]")?.dataset.command;
      if (command) this.do(command);
    });
    this.root.addEventListener("input", () => this.drawMap());
    this.stages.forEach((stage) => this.listenTo(stage));
    this.update();
    new ResizeObserver(() => this.stages[0].isConnected && this.place()).observe(this.stages[0]);
  }

  /** Shows a decoded image of a radiograph of `size`; zoom and window start anew. */
  show(image, name, size = [image.naturalWidth, image.naturalHeight]) {
    this.size = size;
    this.name = name;
    Object.assign(this.window, FULL_WINDOW);
    this.refine(image);
    this.fit();
  }

  /** Replaces the image by another one of the same radiograph. */
  refine(image) {
    this.pixels = image.naturalWidth / this.size[0];
    this.wantsDetail = this.pixels < 1;
    for (const film of this.all(".film")) film.src = image.src;
    this.drawFilm();
  }

  /** Lays a map over the image; without one, the image is shown alone. */
  setMap(map) {
    this.map = map;
    this.drawMap();
  }

  // Drawing

  drawFilm() {
    const { center, width } = this.window;
    const [slope, intercept] = [255 / width, 0.5 - center / width];
    for (const channel of this.one("feComponentTransfer").children) {
      channel.setAttribute("slope", this.on.invert ? -slope : slope);
      channel.setAttribute("intercept", this.on.invert ? 1 - intercept : intercept);
    }
    const isPlain = !this.on.invert && center === FULL_WINDOW.center && width === FULL_WINDOW.width;
    for (const film of this.all(".film")) film.style.filter = isPlain ? "" : `url(#${this.one("filter").id})`;
    this.describe();
  }

  drawMap() {
    const layers = this.stages[Number(this.on.split)].querySelector(".layers");
    if (this.overlay.parentElement !== layers) layers.append(this.overlay); // else a large page is styled anew
    const isShown = this.map !== null && this.on.map;
    this.overlay.hidden = !this.map;
    this.heat.style.visibility = isShown ? "" : "hidden";
    this.one(".color-bar").hidden = !isShown || !Math.max(...this.map.levels); // an empty map has no scale
    if (!this.map) return;
    const [left, top, right, bottom] = this.map.box;
    const size = { width: `${right - left}px`, height: `${bottom - top}px` };
    Object.assign(this.overlay.style, { left: `${left}px`, top: `${top}px`, ...size });
    const peak = this.one(".own-scale input").checked ? Math.max(1, ...this.map.levels) / 255 : 1;
    paint(this.heat, this.map, this.colors, peak);
    // On a scale of its own, a map of hardly any evidence has the colours of the strongest.
    const strength = Math.sqrt(peak) * (this.map.isFaint ? 0.6 : 1);
    const opacity = this.amount("opacity") * Math.max(FAINTEST, strength);
    this.heat.style.opacity = opacity;
    this.one(".color-bar canvas").style.opacity = opacity;
    this.heat.setAttribute("aria-label", `Map of ${this.map.name}. ${this.map.text}`);
    const path = this.on.contour ? contour(this.map, this.amount("threshold") * 255 * peak) : "";
    this.outline.setAttribute("viewBox", `0 0 ${right - left} ${bottom - top}`);
    for (const item of this.outline.children) item.setAttribute("d", path);
    this.all(".color-bar b").forEach((label, place) => (label.textContent = (peak * (1 - place / 2)).toFixed(2)));
    this.describe();
  }

  amount(name) {
    const input = this.one(`[data-slider="${name}"] input`);
    input.nextElementSibling.textContent = `${input.value} %`;
    return Number(input.value) / 100;
  }

  describe() {
    const { center, width } = this.window;
    const ratio = Math.round(100 * this.zoom.scale * devicePixelRatio);
    this.one(".stage-state").textContent = `W ${Math.round(width)} L ${Math.round(center)}  ${ratio} %`;
    this.stages.forEach((stage, place) => {
      const name = this.on.split && place === 1 && this.map ? `Map of ${this.map.name}` : this.name ?? "";
      stage.setAttribute("aria-label", `${name}; plus and minus zoom, arrow keys move, question mark lists the keys`);
      const isMap = this.map && (this.on.split ? place === 1 : this.on.map);
      stage.querySelector(".stage-name").textContent = isMap ? `Map of ${this.map.name}\n${this.map.note ?? ""}`.trim() : name;
    });
  }

  // Zoom: in pixels of the stage; both panes show the same part

  get fitted() {
    const { clientWidth, clientHeight } = this.stages[0];
    return Math.min(clientWidth / this.size[0], clientHeight / this.size[1]) || 1;
  }

  fit() {
    this.zoom.isFitted = true;
    this.place();
  }

  place() {
    const { clientWidth, clientHeight } = this.stages[0];
    if (this.zoom.isFitted) this.zoom.scale = this.fitted;
    const hold = (offset, room, length) => (length <= room ? (room - length) / 2 : Math.min(0, Math.max(room - length, offset)));
    this.zoom.x = hold(this.zoom.x, clientWidth, this.size[0] * this.zoom.scale);
    this.zoom.y = hold(this.zoom.y, clientHeight, this.size[1] * this.zoom.scale);
    for (const layers of this.all(".layers")) {
      Object.assign(layers.style, { width: `${this.size[0]}px`, height: `${this.size[1]}px` });
      layers.style.transform = `translate(${this.zoom.x}px, ${this.zoom.y}px) scale(${this.zoom.scale})`;
    }
    this.root.classList.toggle("is-zoomed", this.zoom.scale > this.fitted * 1.001);
    this.describe();
    if (this.wantsDetail && this.zoom.scale * devicePixelRatio > this.pixels * 1.05) {
      this.wantsDetail = false; // asked for once
      this.root.dispatchEvent(new CustomEvent("detail", { bubbles: true }));
    }
  }

  zoomTo(wanted, at = [this.stages[0].clientWidth / 2, this.stages[0].clientHeight / 2]) {
    const { fitted, zoom } = this;
    const scale = Math.min(Math.max(fitted * MAX_ZOOM, 2), Math.max(fitted, wanted));
    zoom.x = at[0] - ((at[0] - zoom.x) * scale) / zoom.scale;
    zoom.y = at[1] - ((at[1] - zoom.y) * scale) / zoom.scale;
    zoom.scale = scale;
    zoom.isFitted = scale <= fitted * 1.001;
    this.place();
  }

  move(x, y) {
    this.zoom.x += x;
    this.zoom.y += y;
    this.place();
  }

  drag(x, y) {
    const full = 255 / this.stages[0].clientWidth;
    this.window.width = Math.min(510, Math.max(2, this.window.width + x * full));
    this.window.center = Math.min(255, Math.max(0, this.window.center + y * full));
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.drawFilm());
  }

  // Commands

  do(command) {
    if (command in this.on) this.on[command] = !this.on[command];
    else if (command === "window" || command === "pan") this.tool = command;
    else if (command === "in") this.zoomTo(this.zoom.scale * 1.5);
    else if (command === "out") this.zoomTo(this.zoom.scale / 1.5);
    else if (command === "fit") this.fit();
    else if (command === "actual") this.zoomTo(1 / devicePixelRatio);
    else if (command === "full") document.fullscreenElement ? document.exitFullscreen() : this.root.requestFullscreen();
    else if (command === "help") this.one("dialog").showModal();
    else if (command === "reset") {
      this.on.invert = false;
      Object.assign(this.window, FULL_WINDOW);
      this.fit();
    }
    this.update();
  }

  update() {
    const states = { ...this.on, window: this.tool === "window", pan: this.tool === "pan" };
    for (const name in states) this.one(`[data-command=${name}]`).setAttribute("aria-pressed", states[name]);
    this.root.classList.toggle("is-split", this.on.split);
    this.root.dataset.tool = this.tool;
    this.drawFilm();
    this.drawMap();
    this.place();
  }

  /** Acts on a key if it is one of the viewer's. */
  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.(FIELDS)) return;
    const moves = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
    const command = COMMANDS.find(([, key]) => key === event.key.toLowerCase())?.[0] ?? { "=": "in", 0: "fit" }[event.key];
    if (command) this.one(`[data-command=${command}]`).click();
    else if (event.key === "[" || event.key === "]") {
      const input = this.one('[data-slider="opacity"] input');
      input.value = Number(input.value) + (event.key === "]" ? 10 : -10);
      input.dispatchEvent(new Event("input", { bubbles: true }));
    } else if (moves[event.key] && event.target.matches?.(".stage")) this.move(...moves[event.key]);
    else return;
    event.preventDefault();
  }

  listenTo(stage) {
    const at = (event) => {
      const box = stage.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    stage.addEventListener("wheel", (event) => {
      if (this.zoom.isFitted && event.deltaY > 0 && !event.ctrlKey) return; // there is nothing to zoom out of: the page scrolls
      event.preventDefault();
      this.zoomTo(this.zoom.scale * Math.exp(-event.deltaY / (event.ctrlKey ? 150 : 500)), at(event));
    }, { passive: false });
    stage.addEventListener("dblclick", (event) => (this.zoom.isFitted ? this.zoomTo(this.zoom.scale * 2.5, at(event)) : this.fit()));
    stage.addEventListener("pointerdown", (event) => {
      if (event.button > 1) return;
      if (event.button === 1) event.preventDefault();
      const isPan = event.button === 1 || event.shiftKey || this.tool === "pan";
      this.pointers.set(event.pointerId, { at: at(event), isPan });
      stage.setPointerCapture(event.pointerId);
    });
    stage.addEventListener("pointermove", (event) => {
      const before = this.pointers.get(event.pointerId);
      if (!before) return;
      const now = at(event);
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1].at;
      if (other) {
        const distance = (point) => Math.max(1, Math.hypot(point[0] - other[0], point[1] - other[1]));
        const middle = [(now[0] + other[0]) / 2, (now[1] + other[1]) / 2];
        this.zoomTo((this.zoom.scale * distance(now)) / distance(before.at), middle);
      } else this[before.isPan ? "move" : "drag"](now[0] - before.at[0], now[1] - before.at[1]);
      before.at = now;
    });
    stage.addEventListener("lostpointercapture", (event) => this.pointers.delete(event.pointerId));
  }
}

/** A map's levels at the centres of `width` x `height` pixels, enlarged bilinearly as torch does without corners aligned. */
function enlarge({ levels, grid: [rows, columns] }, width, height) {
  const places = (count, length) => Array.from({ length }, (_, at) => {
    const exact = Math.min(Math.max(((at + 0.5) * count) / length - 0.5, 0), count - 1);
    return [Math.floor(exact), Math.ceil(exact), exact % 1];
  });
  const across = places(columns, width);
  const values = new Float32Array(width * height);
  places(rows, height).forEach(([above, below, down], y) => across.forEach(([before, after, along], x) => {
    const high = levels[above * columns + before] * (1 - along) + levels[above * columns + after] * along;
    const low = levels[below * columns + before] * (1 - along) + levels[below * columns + after] * along;
    values[y * width + x] = high * (1 - down) + low * down;
  }));
  return values;
}

const sizeOf = ([left, top, right, bottom], longest) => {
  const scale = longest / Math.max(right - left, bottom - top);
  return [Math.max(1, Math.round((right - left) * scale)), Math.max(1, Math.round((bottom - top) * scale))];
};

/** Colours a map; its alpha is the map itself, on a scale that ends at `peak`. */
function paint(canvas, map, colors, peak) {
  const [width, height] = sizeOf(map.box, HEAT);
  const values = enlarge(map, width, height);
  const image = new ImageData(width, height);
  for (let at = 0; at < values.length; at++) {
    const level = Math.round(values[at] / peak);
    for (let channel = 0; channel < 3; channel++) image.data[4 * at + channel] = colors[3 * level + channel];
    image.data[4 * at + 3] = level;
  }
  Object.assign(canvas, { width, height });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** The outline of a map at a level as the path of an SVG, in pixels of the image: marching squares with one cell of frame. */
function contour(map, threshold) {
  const [width, height] = sizeOf(map.box, CONTOUR);
  const values = enlarge(map, width, height);
  const unit = (map.box[2] - map.box[0]) / width;
  const value = (x, y) => (x < 0 || y < 0 || x >= width || y >= height ? -1 : values[y * width + x]);
  const parts = [];
  for (let y = -1; y < height; y++) {
    for (let x = -1; x < width; x++) {
      const corners = [[x, y], [x + 1, y], [x + 1, y + 1], [x, y + 1]];
      const crossings = corners.flatMap((from, place) => {
        const to = corners[(place + 1) % 4];
        const [first, second] = [value(...from), value(...to)];
        if (first >= threshold === second >= threshold) return [];
        const share = (threshold - first) / (second - first);
        return [[0, 1].map((axis) => ((from[axis] + share * (to[axis] - from[axis]) + 0.5) * unit).toFixed(1)).join(" ")];
      });
      for (let pair = 0; pair + 1 < crossings.length; pair += 2) parts.push(`M${crossings[pair]}L${crossings[pair + 1]}`);
    }
  }
  return parts.join("");
}
