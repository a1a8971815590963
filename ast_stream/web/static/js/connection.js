// The two connections of a page: what happens (server-sent events) and how it sounds (WebSocket).
// Both come back by themselves; of events nothing is missed or shown twice by that.

const FIRST_RETRY_MS = 500;
const LONGEST_RETRY_MS = 8000;
const SEEN_EVENTS = 20000;

// Calls `tell(kind, body)` for each message; `say(isConnected)` as the connection comes and goes.
export class EventFeed {
  constructor(after, tell, say) {
    this.place = after;
    this.tell = tell;
    this.say = say;
    this.seen = new Set();
    this.wait = FIRST_RETRY_MS;
    this.connect();
  }

  connect() {
    const after = this.place ? `?after=${encodeURIComponent(this.place)}` : "";
    this.source = new EventSource(`/live/events${after}`);
    for (const kind of ["hello", "event", "gap", "alert", "health", "status", "missed", "refused"]) {
      this.source.addEventListener(kind, (message) => this.receive(kind, message));
    }
    this.source.addEventListener("error", () => {
      this.say(false);
      if (this.source.readyState !== EventSource.CLOSED) return; // it reconnects by itself
      setTimeout(() => this.connect(), this.wait);
      this.wait = Math.min(2 * this.wait, LONGEST_RETRY_MS);
    });
  }

  receive(kind, message) {
    if (message.lastEventId) this.place = message.lastEventId;
    const body = JSON.parse(message.data);
    if (kind === "hello") {
      this.wait = FIRST_RETRY_MS;
      this.say(true);
    }
    if (kind === "event" || kind === "gap" || kind === "alert") {
      if (this.isToldAgain(kind, body)) return;
    }
    this.tell(kind, body);
  }

  isToldAgain(kind, body) {
    const identity = identityOf(kind, body);
    if (this.seen.has(identity)) return true;
    this.seen.add(identity);
    if (this.seen.size > SEEN_EVENTS) this.seen.delete(this.seen.values().next().value);
    return false;
  }
}

function identityOf(kind, body) {
  if (kind === "event") return `${body.id} ${body.type} ${body.at_sample}`;
  if (kind === "gap") return `${body.stream} ${body.epoch} ${body.start}`;
  return `${body.id} ${body.state}`;
}

// Calls `show(header, pixels)` for each message of the streams that are asked for.
export class PictureFeed {
  constructor(show) {
    this.show = show;
    this.streams = [];
    this.wait = FIRST_RETRY_MS;
    this.connect();
  }

  ask(streams) {
    this.streams = streams;
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ streams }));
  }

  connect() {
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    this.socket = new WebSocket(`${scheme}//${location.host}/live/pictures`);
    this.socket.binaryType = "arraybuffer";
    this.socket.addEventListener("open", () => {
      this.wait = FIRST_RETRY_MS;
      this.ask(this.streams);
    });
    this.socket.addEventListener("message", ({ data }) => {
      if (typeof data === "string") {
        this.show(JSON.parse(data), null);
        return;
      }
      const length = new DataView(data).getUint32(0, true);
      const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
      this.show(header, new Uint8Array(data, 4 + length));
    });
    this.socket.addEventListener("close", () => {
      setTimeout(() => this.connect(), this.wait);
      this.wait = Math.min(2 * this.wait, LONGEST_RETRY_MS);
    });
  }
}
