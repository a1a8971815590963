// The page Timeline: colours of the lanes, and a click on a mark opens its event.

import { colourOfClass } from "./colours.js";

for (const lane of document.querySelectorAll("svg[data-class]")) {
  const colour = colourOfClass(lane.dataset.class);
  for (const mark of lane.querySelectorAll("rect.event")) mark.setAttribute("fill", colour);
}
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
