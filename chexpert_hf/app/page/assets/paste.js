// Files and images from the clipboard go to the upload field of the tab that is open.

document.addEventListener("paste", (event) => {
  if (event.target.closest?.("input:not([type=file]), textarea, select, [contenteditable=true]")) return;
  const files = [...(event.clipboardData?.files ?? [])];
  const field = [...document.querySelectorAll(".upload-field")].find((place) => place.offsetParent !== null);
  const input = field?.querySelector("input[type=file]");
  if (!input || files.length === 0) return;
  event.preventDefault();
  const transfer = new DataTransfer();
  for (const file of input.multiple ? files : files.slice(0, 1)) transfer.items.add(file);
  input.files = transfer.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
});
