// Downloads a file that the server sent in the page, without writing it to the server's disk.

watch("value", () => {
  const link = element.querySelector("[data-file]");
  if (!link) return;
  const content = Uint8Array.from(atob(link.dataset.file), (letter) => letter.charCodeAt(0));
  const address = URL.createObjectURL(new Blob([content], { type: link.dataset.type }));
  const anchor = document.createElement("a");
  anchor.href = address;
  anchor.download = link.dataset.name;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
});
