// A spectrogram that moves: the last seconds of a stream on its audio clock, with its events.

import { RAMP_256, colourOfClass } from "./colours.js";

const FRAME_SAMPLES = 160; // 10 ms at 16 kHz
const FRAMES_PER_S = 100;
const MELS = 128;
const SECONDS = 12;
const FRAMES = SECONDS * FRAMES_PER_S;
const QUIET_DB = -55; // what is shown in the darkest colour, and in the brightest
const LOUD_DB = 30;
const NOTHING = RAMP_256[0]; // was not sent
const WITHHELD = 0xff50453d; // level 0: somebody may talk there
const MAX_EVENTS = 64;

export class Spectrogram {
  // `canvas` is drawn on at its size on the screen; columns are kept in a ring of their own
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.ring = document.createElement("canvas");
    this.ring.width = FRAMES;
    this.ring.height = MELS;
    this.ringContext = this.ring.getContext("2d", { willReadFrequently: false });
    this.epoch = null;
    this.nextFrame = 0; // of the epoch: the one after the newest
    this.columns = 0; // drawn since the page was opened
    this.events = new Map();
    this.colours = null; // of levels, made for the scale of the stream
    this.scale = "";
    this.isAsked = false;
    this.clear(0, FRAMES);
    new ResizeObserver(() => this.resize()).observe(canvas);
  }

  resize() {
    const scale = window.devicePixelRatio || 1;
    const width = Math.max(1, Math.round(this.canvas.clientWidth * scale));
    const height = Math.max(1, Math.round(this.canvas.clientHeight * scale));
    if (width === this.canvas.width && height === this.canvas.height) return;
    this.canvas.width = width;
    this.canvas.height = height;
    this.ask();
  }

  // pixels: frames × mels levels, one frame after the other, low frequencies first
  add(header, pixels) {
    if (header.mels !== MELS || pixels.length !== header.frames * MELS) return;
    const first = Math.round(header.start_sample / FRAME_SAMPLES);
    if (header.epoch !== this.epoch || Math.abs(first - this.nextFrame) > FRAMES) {
      this.epoch = header.epoch;
      this.clear(0, FRAMES);
      this.nextFrame = first;
    }
    while (this.nextFrame < first) this.clear(this.nextFrame++ % FRAMES, 1); // was not sent
    const colours = this.coloursOf(header);
    const image = this.ringContext.createImageData(1, MELS);
    const column = new Uint32Array(image.data.buffer);
    for (let frame = 0; frame < header.frames; frame++) {
      for (let mel = 0; mel < MELS; mel++) {
        column[MELS - 1 - mel] = colours[pixels[frame * MELS + mel]];
      }
      this.ringContext.putImageData(image, (first + frame) % FRAMES, 0);
    }
    this.nextFrame = Math.max(this.nextFrame, first + header.frames);
    this.columns += header.frames;
    this.canvas.dataset.columns = String(this.columns);
    this.ask();
  }

  coloursOf({ low_db: lowDb, step_db: stepDb }) {
    const scale = `${lowDb} ${stepDb}`;
    if (this.scale !== scale) {
      this.scale = scale;
      this.colours = Uint32Array.from({ length: 256 }, (_, level) => {
        const part = (lowDb + stepDb * level - QUIET_DB) / (LOUD_DB - QUIET_DB);
        return RAMP_256[Math.round(255 * Math.min(1, Math.max(0, part)))];
      });
      this.colours[0] = WITHHELD;
    }
    return this.colours;
  }

  // an event as the feed has it: begin and update make or move its box, end closes it
  note(event) {
    this.events.set(event.id, event);
    if (this.events.size > MAX_EVENTS) this.events.delete(this.events.keys().next().value);
    this.ask();
  }

  clear(first, count) {
    const image = this.ringContext.createImageData(count, MELS);
    new Uint32Array(image.data.buffer).fill(NOTHING);
    this.ringContext.putImageData(image, first, 0);
  }

  ask() {
    if (this.isAsked) return;
    this.isAsked = true;
    requestAnimationFrame(() => {
      this.isAsked = false;
      this.draw();
    });
  }

  draw() {
    const { context, canvas } = this;
    const { width, height } = canvas;
    const split = this.nextFrame % FRAMES; // the oldest column of the ring
    const older = ((FRAMES - split) / FRAMES) * width;
    context.imageSmoothingEnabled = true;
    context.drawImage(this.ring, split, 0, FRAMES - split, MELS, 0, 0, older, height);
    if (split > 0) context.drawImage(this.ring, 0, 0, split, MELS, older, 0, width - older, height);
    this.drawSeconds();
    this.drawEvents();
  }

  x(sample) {
    return ((sample / FRAME_SAMPLES - this.nextFrame + FRAMES) / FRAMES) * this.canvas.width;
  }

  drawSeconds() {
    const { context, canvas } = this;
    const scale = window.devicePixelRatio || 1;
    context.fillStyle = "rgba(255, 255, 255, 0.75)";
    context.font = `${10 * scale}px sans-serif`;
    for (let second = 2; second < SECONDS; second += 2) {
      const x = (1 - second / SECONDS) * canvas.width;
      context.fillRect(x, canvas.height - 4 * scale, scale, 4 * scale);
      context.fillText(`−${second} s`, x + 3 * scale, canvas.height - 3 * scale);
    }
  }

  drawEvents() {
    const { context, canvas } = this;
    const scale = window.devicePixelRatio || 1;
    const rows = []; // right ends of the labels in each row
    let boxes = 0;
    for (const event of this.events.values()) {
      if (event.epoch !== this.epoch) continue;
      const left = this.x(event.onset_sample);
      const right = event.type === "end" ? this.x(event.offset_sample) : canvas.width;
      if (right <= 0 || left >= canvas.width) continue;
      boxes += 1;
      context.strokeStyle = colourOfClass(event.class);
      context.fillStyle = context.strokeStyle;
      context.lineWidth = 2 * scale;
      context.strokeRect(left, scale, right - left, canvas.height - 2 * scale);
      context.font = `bold ${12 * scale}px sans-serif`;
      const text = event.label;
      const room = context.measureText(text).width + 8 * scale;
      const start = Math.max(4 * scale, Math.min(left + 4 * scale, canvas.width - room));
      const stop = start + room;
      let row = rows.findIndex((end) => end < start);
      if (row < 0) row = rows.length;
      rows[row] = stop;
      const y = (16 + 16 * row) * scale;
      context.fillStyle = "rgba(0, 0, 0, 0.65)";
      context.fillRect(start - 2 * scale, y - 12 * scale, stop - start - 4 * scale, 16 * scale);
      context.fillStyle = colourOfClass(event.class);
      context.fillText(text, start, y);
    }
    canvas.dataset.boxes = String(boxes);
  }
}
