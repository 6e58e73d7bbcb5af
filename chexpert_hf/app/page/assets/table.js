// The table of many radiographs: sorting by any column, and a button per row that opens it. `templates/table.html` makes it.

element.addEventListener("click", (event) => {
  const target = event.target.closest("button");
  if (!target || !element.contains(target)) return;
  if (target.dataset.row !== undefined) trigger("open", { row: Number(target.dataset.row) });
  else if (target.dataset.column !== undefined) sortBy(target);
});

function sortBy(button) {
  const header = button.closest("th");
  const body = element.querySelector("tbody");
  const column = Number(button.dataset.column);
  // Scores from the highest; names from A, and the order of the files from the first.
  const isText = header.dataset.kind === "text";
  const isScore = header.dataset.kind === "number";
  const [first, second] = isScore ? ["descending", "ascending"] : ["ascending", "descending"];
  const order = header.getAttribute("aria-sort") === first ? second : first;
  for (const other of element.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const key = (row) => row.children[column]?.dataset.value ?? "";
  const names = new Intl.Collator(undefined, { numeric: true });
  const compare = (a, b) => {
    const [left, right] = [key(a), key(b)];
    if (isText) return sign * names.compare(left, right);
    if (left === "" || right === "") return (left === "") - (right === ""); // rows without a score stay last
    return sign * (Number(left) - Number(right));
  };
  const place = (row) => Number(row.dataset.place);
  body.append(...[...body.rows].sort((a, b) => compare(a, b) || place(a) - place(b)));
}
