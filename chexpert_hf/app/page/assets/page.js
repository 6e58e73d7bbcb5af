// The frame of the page: files dropped or pasted anywhere, buttons of the bar, dialogs, and history.

const MOST_FILES = 5000; // read from dropped folders; the server takes fewer and says so

let depth = 0; // 0 at the start, 1 with a result or list, 2 with a row of a list
let left = ""; // how the visitor left a result, until something else is done: "back", "new", or "away" by the browser
let isRow = false; // whether the last result at depth 2 was a row, not a study
let dialog = null; // the last one that was open

const frame = () => element.closest(".gradio-container");

// Tells the style sheet what is shown. `:has` would be slower: each new row or text would have the whole list styled anew.
function show(isAway) {
  const shown = ["", "result", isRow ? "row" : "study"][isAway ? 0 : depth];
  for (const item of [frame(), document.querySelector("#workspace")]) {
    if (shown) item.dataset.shown = shown;
    else delete item.dataset.shown;
  }
}

function open(wanted) {
  dialog = wanted;
  const address = location.origin + location.pathname.replace(/\/$/, "");
  for (const code of dialog.querySelectorAll("code")) code.textContent = code.textContent.replaceAll("ADDRESS", address);
  if (!dialog.open) dialog.showModal();
  if (!history.state?.isDialog) history.pushState({ ...history.state, isDialog: true }, ""); // the browser's button closes it
  dialog.addEventListener("close", () => history.state?.isDialog && history.back(), { once: true });
}

function give(files) {
  const input = document.querySelector("#file input[type=file]");
  if (!input) return;
  if (document.querySelector("[data-shown] #list-stop")) return trigger("refused", { is_busy: true });
  if (files.length === 0) return trigger("refused", { is_busy: false });
  const transfer = new DataTransfer();
  for (const file of files) transfer.items.add(file);
  input.files = transfer.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
}

async function filesIn(entry, found) {
  if (found.length >= MOST_FILES) return;
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    found.push(new File([file], entry.fullPath.slice(1))); // the folders tell files of the same name apart
  } else {
    const reader = entry.createReader();
    const read = () => new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    for (let batch = await read(); batch.length; batch = await read()) {
      for (const child of batch) await filesIn(child, found);
    }
  }
}

const mark = (isOver) => frame().classList.toggle("is-dropping", isOver);

document.addEventListener("dragover", (event) => {
  if (!event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  mark(true);
}, true);
document.addEventListener("dragleave", (event) => event.relatedTarget === null && mark(false));
document.addEventListener("drop", async (event) => {
  mark(false);
  if (!event.dataTransfer?.files.length) return;
  event.preventDefault();
  event.stopPropagation(); // Gradio's own field would take files without those in folders
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return give(event.dataTransfer.files);
  const found = [];
  for (const entry of entries) await filesIn(entry, found);
  give(found);
}, true);

document.addEventListener("paste", (event) => {
  if (event.target.closest?.("input:not([type=file]), textarea, select, [contenteditable=true]")) return;
  const files = event.clipboardData?.files;
  if (!files?.length) return;
  event.preventDefault();
  give(files);
});

function leave(action) {
  left = action;
  trigger(action, {});
}

function stepBy(step) {
  left = "";
  document.dispatchEvent(new CustomEvent("step-in-list", { detail: Number(step) }));
}

document.addEventListener("click", () => (left = ""), true); // before the buttons that leave
document.addEventListener("click", ({ target }) => {
  const { dialog: wanted, step, action } = target.closest("button")?.dataset ?? {};
  if (wanted) document.getElementById(wanted).showModal();
  const opened = document.querySelector("dialog[open]"); // by this or by the viewer
  if (opened && !history.state?.isDialog) open(opened);
  else if (target.matches("dialog.sheet")) target.close(); // beside its content
  else if (step) stepBy(step);
  else if (["new", "back"].includes(action)) leave(action);
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || dialog?.open || event.target.closest?.("input, select, textarea")) return;
  const step = { n: 1, b: -1 }[event.key];
  if (step && element.querySelector("[data-step]")) stepBy(step);
  else if (event.key === "Escape" && !document.fullscreenElement) element.querySelector("[data-action=back]")?.click();
});

// The browser's buttons lead from a row to the list and from there to the start, which hides what was left, and forward to
// it again: a row or study is opened anew. What "New" has discarded does not come back.
history.replaceState({ depth }, "");
addEventListener("popstate", (event) => {
  const { depth: wanted = 0, isDialog } = event.state ?? {};
  if (isDialog && dialog?.isConnected) return open(dialog);
  dialog?.close();
  const isAway = depth > 0 && wanted === 0;
  show(isAway);
  if (isAway) {
    document.querySelector("#list-stop")?.click();
    left = "away";
  } else if (wanted < depth) leave("back");
  else if (wanted === depth) left = [left, "back", ""][depth]; // a row that is still being opened stays closed
  else if (depth === 0) history.go(-wanted);
  else if (isRow) stepBy(0);
  else document.querySelector("[data-action=study]")?.click();
});

// The name of a file is the visitor's own: it is shown from the browser and never comes back from the server.
document.addEventListener("change", ({ target }) => {
  if (!target.matches("#file input[type=file]")) return;
  left = "";
  frame().dataset.given = target.files.length === 1 ? target.files[0].name : `${target.files.length.toLocaleString("en")} files`;
}, true);
watch("value", () => {
  const name = element.querySelector(".bar-name");
  const now = element.querySelector("[data-action=back]") ? 2 : Number(Boolean(name));
  // A result that was asked for before the visitor left another one is not wanted any more.
  if (now > { back: 1, new: 0 }[left]) return trigger(left, {});
  if (!depth !== !now) scrollTo(0, 0);
  depth = now;
  if (depth === 2) isRow = Boolean(element.querySelector("[data-step]"));
  if (name && !name.textContent) name.textContent = name.title = frame().dataset.given;
  if (left === "away") return;
  show(false);
  const kept = history.state?.depth ?? 0;
  if (depth > kept) history.pushState({ depth }, "");
  else if (depth < kept) history.go(depth - kept);
});
