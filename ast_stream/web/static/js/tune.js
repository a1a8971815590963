// The page Tune: the threshold is dragged in a lane or on the slider, and tried on the server.

const WAIT_MS = 250;
const MARK_HEIGHT = 6;
const form = document.querySelector("#trial");
const range = document.querySelector("#threshold");
const value = document.querySelector("#threshold-value");
const outcome = document.querySelector("#outcome");
const height = Number(form.dataset.height);
let timer = null;
let running = null;

function showThreshold() {
  value.textContent = range.value;
  const y = String(height * (1 - Number(range.value)));
  for (const line of document.querySelectorAll(".tune-lane .threshold")) {
    line.setAttribute("y1", y);
    line.setAttribute("y2", y);
  }
}

function showMarks() {
  for (const group of document.querySelectorAll(".tune-lane .marks")) group.replaceChildren();
  for (const mark of document.querySelectorAll("#marks li")) {
    const { kind, stream, x, width } = mark.dataset;
    const group = document.querySelector(`svg[data-stream="${CSS.escape(stream)}"] .marks`);
    if (!group) continue;
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const row = kind === "kept" ? 1 : 2;
    const shape = { class: kind, x, width, y: height - row * MARK_HEIGHT, height: MARK_HEIGHT };
    for (const [name, given] of Object.entries(shape)) rect.setAttribute(name, String(given));
    group.append(rect);
  }
}

async function tryOut() {
  running?.abort();
  running = new AbortController();
  const query = new URLSearchParams(new FormData(form));
  outcome.setAttribute("aria-busy", "true");
  try {
    const options = { headers: { Accept: "application/json" }, signal: running.signal };
    const answer = await fetch(`/tune/trial?${query}`, options);
    if (answer.ok) {
      outcome.innerHTML = await answer.text();
      history.replaceState(null, "", `/tune?${query}`);
    } else {
      const notice = document.createElement("p");
      notice.className = "notice bad";
      notice.textContent = (await answer.json()).error;
      outcome.replaceChildren(notice);
    }
    showMarks();
  } catch (error) {
    if (error.name === "AbortError") return;
    outcome.textContent = "The page does not answer.";
  }
  outcome.removeAttribute("aria-busy");
}

function soon() {
  clearTimeout(timer);
  timer = setTimeout(tryOut, WAIT_MS);
}

range.addEventListener("input", () => {
  showThreshold();
  soon();
});
form.addEventListener("change", soon);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(timer);
  tryOut();
});
for (const lane of document.querySelectorAll(".tune-lane svg")) {
  const drag = (event) => {
    const box = lane.getBoundingClientRect();
    const score = 1 - (event.clientY - box.top) / box.height;
    range.value = String(Math.min(1, Math.max(0.01, score)));
    showThreshold();
    soon();
  };
  lane.addEventListener("pointerdown", (event) => {
    lane.setPointerCapture(event.pointerId);
    drag(event);
  });
  lane.addEventListener("pointermove", (event) => {
    if (lane.hasPointerCapture(event.pointerId)) drag(event);
  });
}
showMarks();
