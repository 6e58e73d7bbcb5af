// Buttons in a piece of HTML trigger actions (Gradio reads the names here). An error gets the name of the file that was
// given, which the browser knows.

function sign() {
  const name = element.querySelector(".given");
  if (name) name.textContent = `${element.closest(".gradio-container").dataset.given}: `;
}
watch("value", sign);
sign();

element.addEventListener("click", (event) => {
  const { action, ...details } = event.target.closest("button")?.dataset ?? {};
  if (!["override", "study", "table", "overlays", "example"].includes(action)) return;
  const hidden = [...document.querySelectorAll("#list tr[hidden]")].map((row) => Number(row.dataset.place));
  trigger(action, { hidden, ...details });
});
