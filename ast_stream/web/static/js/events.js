// The list of events: j and k go through it, Enter opens.

document.addEventListener("keydown", (press) => {
  if (press.altKey || press.ctrlKey || press.metaKey || press.target.closest("input, select, textarea")) return;
  const step = { j: 1, k: -1 }[press.key];
  if (!step) return;
  const links = [...document.querySelectorAll("#rows a")];
  const at = links.indexOf(document.activeElement);
  links[Math.min(links.length - 1, Math.max(0, at + step))]?.focus();
});
