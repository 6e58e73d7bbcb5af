// The frame of the page: files dropped or pasted anywhere, buttons of the bar, dialogs, and downloads.

const MOST_FILES = 5000; // read from dropped folders; the server takes fewer and says so

let depth = 0; // 0 at the start, 1 with a result or list, 2 with a row of a list
let given = ""; // the name of the last upload
let left = ""; // the action by which the visitor left a result, until something else is done

function open(dialog) {
  const address = location.origin + location.pathname.replace(/\/$/, "");
  for (const code of dialog.querySelectorAll("code")) code.textContent = code.textContent.replaceAll("ADDRESS", address);
  dialog.showModal();
  history.pushState({ depth, isDialog: true }, ""); // the browser's button closes it
  dialog.addEventListener("close", () => history.state?.isDialog && history.back(), { once: true });
}

function give(files) {
  const input = document.querySelector("#file input[type=file]");
  if (!input) return;
  if (document.querySelector("#list-stop")) return trigger("refused", { is_busy: true });
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

const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
const mark = (isOver) => element.closest(".gradio-container").classList.toggle("is-dropping", isOver);

document.addEventListener("dragover", (event) => {
  if (!holdsFiles(event)) return;
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
function stay() {
  left = "";
}

function stepBy(step) {
  stay();
  document.dispatchEvent(new CustomEvent("step-in-list", { detail: Number(step) }));
}

document.addEventListener("click", stay, true); // before the buttons that leave
document.addEventListener("click", (event) => {
  const opener = event.target.closest?.("[data-dialog]");
  if (opener) open(document.getElementById(opener.dataset.dialog));
  else if (event.target.matches?.("dialog.sheet")) event.target.close(); // beside its content
  const step = event.target.closest?.("[data-step]")?.dataset.step;
  if (step) stepBy(step);
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, select, textarea, dialog")) return;
  const step = { n: 1, b: -1 }[event.key];
  if (step && element.querySelector("[data-step]")) stepBy(step);
  else if (event.key === "Escape" && !document.fullscreenElement) element.querySelector("[data-action=back]")?.click();
});

element.addEventListener("click", (event) => {
  const action = event.target.closest("[data-action]")?.dataset.action;
  if (["new", "back"].includes(action)) leave(action);
});

// The browser's button leads back as those of the page do. What was left cannot be shown again without its files.
history.replaceState({ depth }, "");
addEventListener("popstate", (event) => {
  document.querySelector("dialog.sheet[open]")?.close();
  const wanted = event.state?.depth ?? 0;
  if (wanted > depth) history.go(depth - wanted);
  else if (wanted < depth) leave(wanted ? "back" : "new");
});

// The name of a file is the visitor's own: it is shown from the browser and never comes back from the server.
document.addEventListener("change", ({ target }) => {
  if (!target.matches("#file input[type=file]")) return;
  stay();
  given = target.files.length === 1 ? target.files[0].name : `${target.files.length.toLocaleString("en")} files`;
}, true);
watch("value", () => {
  const name = element.querySelector(".bar-name");
  const now = element.querySelector("[data-action=back]") ? 2 : Number(Boolean(name));
  // A result that was asked for before the visitor left another one is not wanted any more.
  if (now > { "": 2, back: 1, new: 0 }[left]) return trigger(left, {});
  if (!depth !== !now) scrollTo(0, 0);
  depth = now;
  const kept = history.state?.depth ?? 0;
  if (depth > kept) history.pushState({ depth }, "");
  else if (depth < kept) history.go(depth - kept);
  if (name && !name.textContent) name.textContent = name.title = given;
});
