// The page of one event: its clip as a spectrogram, its scores, and review by keyboard.

import WaveSurfer from "../vendor/wavesurfer.esm.js";
import SpectrogramPlugin from "../vendor/wavesurfer-spectrogram.esm.js";
import { RAMP_256, colourOfClass } from "./colours.js";

const SAMPLE_RATE = 16000;
const WRITTEN_AFTER_MS = 90000;
const page = document.querySelector("#event");
const audio = document.querySelector("#clip");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// keys: what a button, a link or a field says of itself with data-key
document.addEventListener("keydown", (press) => {
  if (press.altKey || press.ctrlKey || press.metaKey) return;
  if (press.key === "Escape") document.activeElement?.blur();
  if (press.target.closest("input, select, textarea")) return;
  if (press.key === " " && audio && !press.target.closest("button, a, audio")) {
    press.preventDefault();
    if (audio.paused) audio.play();
    else audio.pause();
    return;
  }
  const target = document.querySelector(`[data-key="${CSS.escape(press.key)}"]`);
  if (!target) return;
  press.preventDefault();
  if (target.matches("input")) target.focus();
  else target.click();
});

// Enter in the field is a verdict with that class, not the first button of the form
document.querySelector("#label")?.addEventListener("keydown", (press) => {
  if (press.key !== "Enter") return;
  press.preventDefault();
  document.querySelector('#review button[value="other"]').click();
});

function showClip() {
  const wave = document.querySelector("#wave");
  if (!audio || !wave) return;
  const map = [];
  for (let level = 0; level < 256; level++) {
    const value = RAMP_256[level];
    map.push([(value & 255) / 255, ((value >> 8) & 255) / 255, ((value >> 16) & 255) / 255, 1]);
  }
  const surfer = WaveSurfer.create({
    container: wave,
    media: audio,
    sampleRate: SAMPLE_RATE,
    cspNonce: page.dataset.nonce,
    height: 48,
    waveColor: colour("--soft"),
    progressColor: colour("--accent"),
    cursorColor: colour("--bad"),
    cursorWidth: 2,
    plugins: [
      SpectrogramPlugin.create({
        height: 160,
        fftSamples: 512,
        scale: "mel",
        frequencyMax: SAMPLE_RATE / 2,
        gainDB: 20,
        rangeDB: 80,
        colorMap: map,
        useWebWorker: false,
      }),
    ],
  });
  surfer.on("ready", () => {
    wave.dataset.ready = "true";
    mark(wave, surfer.getDuration());
  });
}

// where the event lies in its clip
function mark(wave, clipS) {
  const start = -Number(page.dataset.onsetS);
  const length = Number(page.dataset.durationS || 0);
  const box = document.createElement("div");
  box.className = "mark";
  box.style.left = `${(100 * Math.max(0, start)) / clipS}%`;
  box.style.width = `${(100 * Math.min(length, clipS - start)) / clipS}%`;
  wave.append(box);
}

async function showScores() {
  const place = document.querySelector("#scores");
  const answer = await fetch(place.dataset.address, { headers: { Accept: "application/json" } });
  const found = answer.ok ? await answer.json() : { times_s: [], series: [] };
  // the recorder writes them in blocks of half a minute: of a new event they may be missing, or end before it
  const isWhole = found.times_s.length > 0 && found.times_s.at(-1) >= (found.duration_s ?? 0);
  const isAwaited = !isWhole && Date.now() - Number(place.dataset.onsetMs) < WRITTEN_AFTER_MS;
  if (isAwaited) setTimeout(showScores, 5000);
  document.querySelector("#awaited-scores").hidden = !isAwaited;
  const isShown = !isAwaited && found.times_s.length > 0;
  place.hidden = !isShown;
  document.querySelector("#no-scores").hidden = isAwaited || isShown;
  if (!isShown) return;
  const lines = found.series.map(({ label }, index) => ({
    label,
    stroke: index === 0 ? colour("--accent") : colourOfClass(label),
    width: index === 0 ? 2.5 : 1.25,
    points: { show: false },
    dash: index === 0 ? undefined : [2 + 2 * index, 3],
    value: (_, score) => (score == null ? "–" : score.toFixed(3)),
  }));
  const axis = { stroke: colour("--ink"), grid: { stroke: colour("--line") }, ticks: { stroke: colour("--line") } };
  const chart = new uPlot(
    {
      width: place.clientWidth,
      height: 220,
      scales: { x: { time: false }, y: { range: [0, 1] } },
      axes: [{ ...axis, values: (_, values) => values.map((value) => `${value} s`) }, axis],
      series: [{ label: "after the onset", value: (_, at) => (at == null ? "–" : `${at.toFixed(2)} s`) }, ...lines],
      hooks: { drawClear: [(plot) => shadeEvent(plot, found.duration_s)] },
    },
    [found.times_s, ...found.series.map(({ scores }) => scores)],
    place,
  );
  place.dataset.points = String(found.times_s.length);
  new ResizeObserver(() => chart.setSize({ width: place.clientWidth, height: 220 })).observe(place);
}

function shadeEvent(plot, durationS) {
  const left = plot.valToPos(0, "x", true);
  const right = plot.valToPos(durationS ?? plot.scales.x.max, "x", true);
  plot.ctx.fillStyle = "rgba(127, 127, 127, 0.2)";
  plot.ctx.fillRect(left, plot.bbox.top, right - left, plot.bbox.height);
}

showClip();
showScores();
