// The page Timeline: a click on a mark opens its event, arrow keys go to the days beside.

for (const table of document.querySelectorAll(".heat")) {
  table.parentElement.scrollLeft = table.parentElement.scrollWidth; // today is at the right
}
document.addEventListener("click", (click) => {
  const mark = click.target.closest("rect[data-event]");
  if (mark?.dataset.event) location.href = `/events/${encodeURIComponent(mark.dataset.event)}`;
});
document.addEventListener("keydown", (press) => {
  if (press.altKey || press.ctrlKey || press.metaKey || press.target.closest("input, select, textarea")) return;
  const rel = { ArrowLeft: "prev", ArrowRight: "next" }[press.key];
  if (rel && !press.target.closest(".scroll")) document.querySelector(`a[rel="${rel}"]`)?.click();
});
