// Buttons in a piece of HTML: an action is triggered (Gradio reads the names here), an index is selected. An error gets
// the name of the file that was given, which the browser knows.

function sign() {
  const name = element.querySelector(".given");
  if (name) name.textContent = `${element.closest(".gradio-container").dataset.given}: `;
}
watch("value", sign);
sign();

element.addEventListener("click", (event) => {
  const { action, index } = event.target.closest("button")?.dataset ?? {};
  if (["override", "study", "csv", "parquet", "overlays"].includes(action)) {
    const hidden = [...document.querySelectorAll("#list tr[hidden]")].map((row) => Number(row.dataset.place));
    trigger(action, { hidden });
  } else if (index !== undefined) trigger("select", { index: Number(index), value: null });
});
