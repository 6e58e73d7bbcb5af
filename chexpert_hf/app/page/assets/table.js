// The list of many radiographs: sorting by any column, filters, and rows that open. `templates/table.html` makes it.

const rows = () => [...element.querySelectorAll("tbody tr")];
const shown = () => rows().filter((row) => !row.hidden);
const places = new Intl.Collator(undefined, { numeric: true }); // for scores, too: all have as many decimals
const SORTED = "th:is([aria-sort=ascending], [aria-sort=descending])";
let opened = null; // the number of the row beside the list

element.addEventListener("click", (event) => {
  const target = event.target.closest("button");
  const row = event.target.closest("tbody tr");
  if (target?.closest("thead")) sortBy(target);
  else if (row?.querySelector(".row-open")) open(row);
});

element.addEventListener("change", (event) => {
  event.stopPropagation();
  filter();
});

function open(row) {
  opened = Number(row.dataset.place);
  for (const each of rows()) each.classList.toggle("is-open", each === row);
  row.scrollIntoView({ block: "nearest" });
  trigger("open", { row: opened, shown: shown().indexOf(row) + 1, of: shown().length, observation: wanted() });
}

// The number of the observation that the list is filtered by, or else sorted by; others are not numbers of any.
function wanted() {
  const call = element.querySelector("select").value;
  return /\d/.test(call) ? Number(call) : (element.querySelector(SORTED)?.cellIndex ?? 0) - 2;
}

function filter() {
  const [call, kind] = [...element.querySelectorAll("select")].map((select) => select.value);
  const holds = (values, wanted) => !wanted || values.split(" ").includes(wanted);
  for (const row of rows()) row.hidden = !(holds(row.dataset.above, call) && holds(row.dataset.kinds, kind));
  element.querySelector(".list-count").textContent = call || kind ? `${shown().length} of ${rows().length} shown` : "";
}

function sortBy(button) {
  const header = button.closest("th");
  // Scores from the highest; names from A.
  const [first, second] = header.cellIndex > 0 ? ["descending", "ascending"] : ["ascending", "descending"];
  const order = header.ariaSort === first ? second : first;
  for (const other of element.querySelectorAll("thead th")) other.ariaSort = other === header ? order : "none";
  reorder();
}

function reorder() {
  const header = element.querySelector(SORTED);
  if (!header) return;
  const sign = header.ariaSort === "ascending" ? 1 : -1;
  const compare = ([left, a], [right, b]) => {
    if (!left || !right) return !left - !right; // rows without a score stay last
    return sign * places.compare(left, right) || a.dataset.place - b.dataset.place;
  };
  const keyed = rows().map((row) => [row.children[header.cellIndex]?.dataset.value ?? "", row]);
  element.querySelector("tbody").append(...keyed.sort(compare).map(([, row]) => row));
}

// The bar above the result, and the keys n and b, ask for the next and the previous row; the browser's, for the last one again.
document.addEventListener("step-in-list", (event) => {
  const candidates = shown().filter((row) => row.querySelector(".row-open"));
  const next = candidates[candidates.findIndex((row) => Number(row.dataset.place) === opened) + event.detail];
  if (next) open(next);
});

// Rows come in parts, while the list is being scored, too: as many as are there are asked for until all are here.
const id = () => element.querySelector(".list-head")?.dataset.id;
const fetchRows = () => id() && rows().length < props.scored && trigger("more", { id: id(), start: rows().length });
watch("scored", fetchRows);
watch("rows", () => {
  const { id: list, start, html } = props.rows ?? {};
  if (list !== id() || start !== rows().length) return;
  element.querySelector("tbody").insertAdjacentHTML("beforeend", html);
  reorder();
  filter();
  fetchRows();
});
function begin() {
  opened = null;
  if (element.querySelector(".list-head")?.dataset.isNew === "1") trigger("run", { id: id() });
  else if (id()) fetchRows();
}
watch("value", begin);
begin();
