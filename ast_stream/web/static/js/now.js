// The page Now: every stream's picture, state and loudest classes, and events as they happen.

import { EventFeed, PictureFeed } from "./connection.js";
import { Spectrogram } from "./spectrogram.js";

const SHOWN_EVENTS = 60;
const STALE_MS = 4000; // health comes each second
const page = document.querySelector("#now");
const list = document.querySelector("#happened");
const connection = document.querySelector("#connection");
const template = document.querySelector("#event-line");
const streams = new Map();
const offsetMs = 1000 * Number(page.dataset.utcOffsetS);

class Stream {
  constructor(section) {
    this.section = section;
    this.name = section.dataset.stream;
    this.spectrogram = new Spectrogram(section.querySelector("canvas"));
    this.isVisible = false;
    this.heardMs = Date.now();
  }

  field(name) {
    return this.section.querySelector(`[data-field="${name}"]`);
  }

  show(name, text) {
    const field = this.field(name);
    if (field && field.textContent !== text) field.textContent = text;
  }

  setHealth(health) {
    this.heardMs = Date.now();
    this.setState(health.state, health.detail ?? "");
    this.show("level", health.level_dbfs == null ? "–" : `${health.level_dbfs.toFixed(0)} dBFS`);
    this.show("lag", health.lag_s == null ? "–" : `${health.lag_s.toFixed(1)} s`);
    this.show("gaps", String(health.gaps));
  }

  setState(state, detail) {
    this.section.dataset.state = state;
    this.show("state", state);
    this.show("detail", detail);
  }

  setLevels(levels) {
    const unit = levels.calibrated ? "dB(A)" : "dBFS(A)";
    const number = (value) => (value == null ? "–" : value.toFixed(1));
    this.show("laeq", `${number(levels.laeq)} ${unit}`);
  }

  setTop(top) {
    const places = this.section.querySelectorAll(".top li");
    top.forEach(([label, score], index) => {
      const place = places[index];
      if (!place) return;
      place.querySelector(".label").textContent = label;
      place.querySelector("meter").value = score;
      place.querySelector(".score").textContent = score.toFixed(2);
    });
  }
}

// the time of day at the box, not where the browser is
function time(text) {
  return new Date(Date.parse(text) + offsetMs).toISOString().slice(11, 19);
}

// the line of an event, made at its begin and kept up to date until its end
function noteEvent(event) {
  streams.get(event.stream)?.spectrogram.note(event);
  let line = list.querySelector(`[data-event="${CSS.escape(event.id)}"]`);
  if (!line) {
    line = template.content.firstElementChild.cloneNode(true);
    line.dataset.event = event.id;
    line.querySelector("a").href = `/events/${encodeURIComponent(event.id)}`;
    line.querySelector(".class").textContent = event.label;
    line.querySelector(".stream-name").textContent = event.stream;
    line.querySelector("time").dateTime = event.onset;
    line.querySelector("time").textContent = time(event.onset);
    place(line, event.onset);
  }
  line.dataset.type = event.type;
  if (!line.dataset.shownMs) {
    line.dataset.shownMs = String(performance.timeOrigin + performance.now());
    if (event.type === "begin") line.dataset.begunMs = String(Date.parse(event.published));
  }
  line.querySelector(".score").textContent = event.peak.toFixed(2);
  line.querySelector(".duration").textContent =
    event.type === "end" ? `${event.duration_s.toFixed(1)} s` : "…";
  page.querySelector("#nothing-yet")?.remove();
}

function noteLine(text, kind, moment) {
  const line = document.createElement("li");
  line.className = kind;
  const clock = document.createElement("time");
  clock.dateTime = moment;
  clock.textContent = time(moment);
  line.append(clock, ` ${text}`);
  place(line, moment);
}

// newest first, also what comes late
function place(line, moment) {
  line.dataset.ms = String(Date.parse(moment));
  const later = [...list.children].find((other) => Number(other.dataset.ms) <= Number(line.dataset.ms));
  list.insertBefore(line, later ?? null);
  while (list.children.length > SHOWN_EVENTS) list.lastElementChild.remove();
}

function tell(kind, body) {
  if (kind === "event") noteEvent(body);
  if (kind === "health") streams.get(body.stream)?.setHealth(body);
  if (kind === "gap") {
    const text = `${body.stream}: ${body.duration_s.toFixed(1)} s lost (${body.reason})`;
    noteLine(text, "gap", body.time ?? body.published);
  }
  if (kind === "alert" && body.state === "firing") {
    const summary = body.annotations.summary ? `: ${body.annotations.summary}` : "";
    noteLine(`alert ${body.rule} (${body.severity})${summary}`, "alert", body.fired ?? body.started);
  }
  if (kind === "missed") noteLine(`messages were lost: ${body.reason}`, "gap", new Date().toISOString());
  if (kind === "refused") noteLine(`no live view: ${body.error}`, "gap", new Date().toISOString());
}

for (const section of page.querySelectorAll("[data-stream]")) {
  streams.set(section.dataset.stream, new Stream(section));
}
for (const line of list.children) {
  const clock = line.querySelector("time");
  clock.textContent = time(clock.dateTime);
  line.dataset.ms = String(Date.parse(clock.dateTime));
}
for (const holder of page.querySelectorAll("[data-open-event]")) {
  noteEvent(JSON.parse(holder.dataset.openEvent));
}

new EventFeed(page.dataset.place, tell, (isConnected) => {
  connection.textContent = isConnected ? "live" : "reconnecting";
  connection.dataset.connected = String(isConnected);
});
const pictures = new PictureFeed((header, pixels) => {
  const stream = streams.get(header.stream);
  if (!stream) return;
  if (header.type === "spectrogram") stream.spectrogram.add(header, pixels);
  if (header.type === "scores") stream.setTop(header.top);
  if (header.type === "levels") stream.setLevels(header);
});

// only of streams on the screen, and of none while the page is in the background
function askForPictures() {
  const wanted = [...streams.values()].filter((stream) => stream.isVisible && !document.hidden);
  pictures.ask(wanted.map((stream) => stream.name));
}
const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) streams.get(entry.target.dataset.stream).isVisible = entry.isIntersecting;
  askForPictures();
});
for (const stream of streams.values()) observer.observe(stream.section);
document.addEventListener("visibilitychange", askForPictures);

setInterval(() => {
  for (const stream of streams.values()) {
    if (Date.now() - stream.heardMs > STALE_MS) stream.setState("unknown", "no word from the worker");
  }
}, 1000);
