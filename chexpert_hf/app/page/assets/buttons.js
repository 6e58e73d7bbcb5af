// Buttons in a piece of HTML: those that carry an index select, those that carry an action trigger it.

element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button || !element.contains(button)) return;
  if (button.dataset.index !== undefined) trigger("select", { index: Number(button.dataset.index), value: null });
  else if (button.dataset.action === "override") trigger("override", {});
});
